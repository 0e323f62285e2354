"""Runs one worker under limits of time and memory, and turns however it ends into an answer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from truecast.measure.memory import anonymous_of_tree
from truecast.study.worker import Answer, Job, failure

WORKER = (sys.executable, "-m", "truecast.study.worker")
POLL_SECONDS = 0.05
"""Between looks at a worker's memory: 1 GB/s of new memory then overshoots a limit by 50 MB."""
LONGEST_LINE = 200
TRACEBACK = "Traceback (most recent call last)"
DOING = {"prepare": "being exported", "measure": "being measured"}


class Stopped(BaseException):
    """The study was told to stop; nothing is known about the variant."""


def run_worker(job: Job, stopped: Callable[[], bool] = lambda: False, command: Sequence[str] = WORKER) -> Answer:
    """The answer of a worker, or a failure with the reason why there is none.

    Args:
        job: what to do; files of the worker go to its folder.
        stopped: asked often; when it says so, the worker is ended.
        command: the worker's program; the files of the job and of the answer are put behind it.

    Raises:
        Stopped: `stopped` said so.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    told, answer = job.folder / f"{job.step}.job.json", job.folder / f"{job.step}.answer.json"
    log = job.folder / f"{job.step}.log"
    answer.unlink(missing_ok=True)
    told.write_text(job.model_dump_json(), encoding="utf-8")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, str(told), str(answer)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            reason = _watch(process, job, stopped)
        finally:
            _end(process)
    if reason:
        return failure(f"it {reason} while {DOING[job.step]}, and was ended")
    if process.returncode == 0 and answer.is_file():
        found: Answer = json.loads(answer.read_text(encoding="utf-8"))
        return found
    last = last_words(log)
    ended = ended_by(process.returncode)
    return failure(f"its process {ended} while {DOING[job.step]}" + (f": {last}" if last else ""))


def _watch(process: subprocess.Popen[bytes], job: Job, stopped: Callable[[], bool]) -> str:
    """Waits for the end; returns which limit was passed, or nothing."""
    limits, start = job.plan.measure, time.monotonic()
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        if stopped():
            raise Stopped
        if time.monotonic() - start > limits.seconds:
            return f"took more than {limits.seconds:g} s"
        if (held := anonymous_of_tree(watched)) > limits.memory:
            return f"held {held / 1e9:.2f} GB of memory, more than the limit of {limits.memory / 1e9:.2f} GB,"
        time.sleep(POLL_SECONDS)
    return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the worker and all that it started: they are a process group of their own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()


def ended_by(status: int) -> str:
    """What a status other than an answer means."""
    if status >= 0:
        return f"ended with status {status} and no answer"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def last_words(log: Path) -> str:
    """The first line of the error that ended a worker, else the last line it wrote, cut to a length that fits a table.

    Behind Python's traceback the error is the first line that is not indented; an error's own further lines follow it.
    """
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    traced = [number for number, line in enumerate(lines) if line.startswith(TRACEBACK)]
    errors = [line for line in lines[traced[-1] + 1 :] if not line[0].isspace()] if traced else []
    return (errors[:1] or lines[-1:] or [""])[0].strip()[:LONGEST_LINE]
