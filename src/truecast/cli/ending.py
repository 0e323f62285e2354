"""How a command ends that did not come to its end: interrupted, or by an error that nobody foresaw."""

from __future__ import annotations

import os
import platform
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Any, NoReturn, Self

INTERRUPTED = 128 + signal.SIGINT
"""As shells report Ctrl-C."""
UNFORESEEN = 3
PACKAGES = ("truecast", "torch", "transformers", "onnx", "onnx-ir", "onnxruntime", "numpy")


TERMINATED = 128 + signal.SIGTERM
SOON = 0.02
"""Seconds after which a signal is sent again whose exception was lost."""


class Interruption:
    """Hears Ctrl-C and SIGTERM while it lasts, once: each ends the command by an exception, which cleans up.

    A library that is just imported may turn the exception into an error of its own, so it is remembered; one that
    is raised inside a destructor or a callback from C never arrives (Python calls it unraisable), so it is sent again.
    Handlers that somebody else has set stay.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            before = signal.getsignal(number)
            if before is usual and threading.current_thread() is threading.main_thread():
                self._before[number] = before
                signal.signal(number, self._noted)
        self._reported = sys.unraisablehook
        sys.unraisablehook = self._lost
        return self

    def __exit__(self, *error: object) -> None:
        sys.unraisablehook = self._reported
        for number, before in self._before.items():
            signal.signal(number, before)

    def _noted(self, number: int, frame: FrameType | None) -> NoReturn:
        self.status = 128 + number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(self.status)

    def _lost(self, unraisable: sys.UnraisableHookArgs) -> None:
        if self.status is None or not issubclass(unraisable.exc_type, KeyboardInterrupt | SystemExit):
            self._reported(unraisable)
            return
        again = threading.Timer(SOON, os.kill, (os.getpid(), self.status - 128))
        again.daemon = True
        again.start()


def interrupted() -> int:
    """Says that a command was interrupted; returns the exit status."""
    return complain("Interrupted; nothing was written.", INTERRUPTED)


def unforeseen(error: Exception, given: Sequence[str]) -> int:
    """Writes the traceback of an error into a file, says where it is, and returns the exit status."""
    reason = f"{type(error).__name__}: {error}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="truecast-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(_report(error, given))
        where = f"please report it with the file {file.name}, which holds the command and the traceback"
    except OSError:
        traceback.print_exception(error)
        where = "please report it with the traceback above"
    return complain(f"truecast failed in a way that nobody foresaw ({reason[:200]}); {where}.", UNFORESEEN)


def _report(error: Exception, given: Sequence[str]) -> str:
    lines = [f"truecast {' '.join(given)}", f"python {platform.python_version()} on {platform.platform()}"]
    for package in PACKAGES:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} absent")
    return "\n".join([*lines, "", *traceback.format_exception(error)])


def complain(sentence: str, status: int) -> int:
    """Writes one line to standard error; returns the status."""
    print(" ".join(sentence.split()), file=sys.stderr)
    return status
