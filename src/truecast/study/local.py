"""The variants on this machine: exported a few at a time, then measured one by one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from truecast.study.plan import Plan
from truecast.study.process import WORKER, run_worker
from truecast.study.results import Row, State
from truecast.study.storing import Store
from truecast.study.variants import Variant
from truecast.study.worker import Answer, Job, Step, failure

Event = Literal["waiting", "exporting", "measuring", "kept", "done"]
Watch = Callable[[str, Event, Row | None], None]
"""Called with a variant's name, what happens to it, and its row once there is one."""
WAKE_SECONDS = 0.2
"""How long the main thread sleeps at most, so that Ctrl-C is heard."""


@dataclass(frozen=True)
class Task:
    """One variant to do; `key` is of all that its row depends on. It can be sent to another machine.

    `command` is the worker's program.
    """

    plan: Plan
    variant: Variant
    out: Path
    key: str
    only_latency: bool = False
    command: tuple[str, ...] = WORKER

    def job(self, step: Step) -> Job:
        """The worker's job for one step."""
        store = Store(self.out)
        return Job(
            step=step,
            plan=self.plan,
            variant=self.variant,
            folder=store.folder(self.variant),
            reference=store.reference,
            only_latency=self.only_latency,
        )

    def row(self, answer: Answer, seconds: float) -> Row:
        """The row of an answer."""
        known = answer if "state" in answer else answer | failure("nothing was measured")
        return Row.model_validate({"variant": self.variant, "key": self.key, "seconds": round(seconds, 1), **known})


def merged(prepared: Answer, measured: Answer) -> Answer:
    """The answers of both steps as one; both may have notes."""
    return prepared | measured | {"notes": [*prepared.get("notes", []), *measured.get("notes", [])]}


def complete(task: Task) -> Row:
    """Both steps of a variant, one after the other."""
    start = time.monotonic()
    answer = prepared(task, threading.Event())
    if answer.get("state") != State.FAILED:
        answer = merged(answer, run_worker(task.job("measure"), command=task.command))
    return task.row(answer, time.monotonic() - start)


def prepared(task: Task, stop: threading.Event) -> Answer:
    """The first step, or what it gave before; PyTorch has nothing to prepare."""
    if task.variant.kind == "torch":
        return {}
    store = Store(task.out)
    answer = store.prepared(task.variant, task.key)
    if answer is None:
        answer = run_worker(task.job("prepare"), stop.is_set, task.command)
        if answer.get("state") != State.FAILED:
            store.keep_prepared(task.variant, task.key, answer)
    return answer


def run_local(tasks: Sequence[Task], jobs: int, told: Watch) -> Generator[Row]:
    """The rows as they are finished. Closing the iterator ends the workers."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(jobs)
    try:
        ready: list[tuple[Task, Answer, float]] = []
        for task, (answer, seconds) in _together(pool, tasks, stop, told):
            if answer.get("state") == State.FAILED:
                yield task.row(answer, seconds)
            else:
                ready.append((task, answer, seconds))
        order = {task.variant.name: place for place, task in enumerate(tasks)}
        for task, answer, before in sorted(ready, key=lambda one: order[one[0].variant.name]):
            told(task.variant.name, "measuring", None)
            start = time.monotonic()
            future = pool.submit(run_worker, task.job("measure"), stop.is_set, task.command)
            _heard(future)
            yield task.row(merged(answer, future.result()), before + time.monotonic() - start)
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _together(
    pool: ThreadPoolExecutor, tasks: Sequence[Task], stop: threading.Event, told: Watch
) -> Iterator[tuple[Task, tuple[Answer, float]]]:
    """Prepares all, as many at a time as the pool has threads."""

    def timed(task: Task) -> tuple[Answer, float]:
        if task.variant.kind != "torch":
            told(task.variant.name, "exporting", None)
        start = time.monotonic()
        return prepared(task, stop), time.monotonic() - start

    futures = {pool.submit(timed, task): task for task in tasks}
    left: set[Future[tuple[Answer, float]]] = set(futures)
    while left:
        done, left = wait(left, timeout=WAKE_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            yield futures[future], future.result()


def _heard(future: Future[Answer]) -> None:
    """Waits in short sleeps."""
    while not future.done():
        wait([future], timeout=WAKE_SECONDS)
