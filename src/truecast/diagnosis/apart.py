"""Makes a call in a process of its own, with a limit of time for each of its steps; what it told until then is kept."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Queue
from tempfile import TemporaryFile
from threading import Thread
from typing import IO, Any

WORKER = (sys.executable, "-m", "truecast.diagnosis.worker")
LONGEST_LINE = 200
START_SECONDS = 60.0
"""To start Python and import ONNX Runtime on a busy machine; no work of the model's falls in it."""


@dataclass(frozen=True)
class Ended:
    """How a call ended that did not return: the step it was at, what was known, whether time or it itself ended it."""

    step: str
    known: Any
    reason: str
    crashed: bool


def call_apart(
    call: Callable[..., Any], arguments: tuple[Any, ...], seconds: float, watch: Callable[[str], None]
) -> Any:
    """What `call(*arguments, tell)` returns in another process, or an Ended.

    `call` and its arguments can be pickled. `watch` is told each step as it begins.
    """
    with TemporaryFile() as log:
        process = subprocess.Popen(WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        messages: Queue[tuple[str, Any] | None] = Queue()
        reader = Thread(target=_read, args=(process.stdout, messages), daemon=True)
        reader.start()
        try:
            _send(process, (call, arguments))
            return _follow(process, messages, seconds, watch, log)
        finally:
            process.kill()
            process.wait()
            reader.join()
            if process.stdout is not None:
                process.stdout.close()


def _send(process: subprocess.Popen[bytes], message: Any) -> None:
    if process.stdin is not None:
        with suppress(BrokenPipeError), process.stdin as pipe:
            pickle.dump(message, pipe)


def _read(pipe: IO[bytes] | None, messages: Queue[tuple[str, Any] | None]) -> None:
    """Hands on each message as it comes, and None at the end."""
    for message in _unpickled(pipe):
        messages.put(message)
    messages.put(None)


def _unpickled(pipe: IO[bytes] | None) -> Iterator[Any]:
    with suppress(EOFError, pickle.UnpicklingError):
        while pipe is not None:
            yield pickle.load(pipe)


def _follow(
    process: subprocess.Popen[bytes],
    messages: Queue[tuple[str, Any] | None],
    seconds: float,
    watch: Callable[[str], None],
    log: IO[bytes],
) -> Any:
    step, known, limit = "starting", None, START_SECONDS
    while True:
        try:
            message = messages.get(timeout=limit)
        except Empty:
            return Ended(step, known, f"took more than {limit:g} s and was ended", crashed=False)
        if message is None:
            return Ended(step, known, f"ended its process ({_how(process.wait(), log)})", crashed=True)
        step, known = message
        if not step:
            return known
        limit = seconds
        watch(step)


def _how(status: int, log: IO[bytes]) -> str:
    """What a status means, and the last line that the process wrote."""
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    name = f"status {status}"
    with suppress(ValueError):
        name = signal.Signals(-status).name if status < 0 else name
    return f"{name}: {lines[-1][:LONGEST_LINE]}" if lines else name
