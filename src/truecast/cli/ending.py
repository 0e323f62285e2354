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
from typing import Any, Self

INTERRUPTED = 128 + signal.SIGINT
"""As shells report Ctrl-C."""
UNFORESEEN = 3
PACKAGES = ("truecast", "torch", "transformers", "onnx", "onnx-ir", "onnxruntime", "numpy")
SOON = 0.02
"""Seconds after which a signal is sent again that was lost, or came at the wrong moment."""
TRACERS = ("torch.export", "torch._export", "torch._functorch", "torch._subclasses", "torch.fx", "torch.utils._python")
"""Beginnings of the names of modules that trace: an exception out of nowhere leaves torch's modes of dispatch unequal
to what C++ believes, which ends the process without any clean-up (SIGABRT, seen in 2 of 35 exports)."""


class Interruption:
    """Hears Ctrl-C and SIGTERM while it lasts: each ends the command by an exception, which cleans up.

    A library that is just imported may turn the exception into an error of its own, so it is remembered; one that
    is raised inside a destructor or a callback from C never arrives (Python calls it unraisable), so it is sent again;
    and so is one that comes while torch traces, until it does not.
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

    def _noted(self, number: int, frame: FrameType | None) -> None:
        if _is_tracing(frame):
            _send_again(number)
            return
        self.status = 128 + number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(self.status)

    def _lost(self, unraisable: sys.UnraisableHookArgs) -> None:
        if self.status is None or not issubclass(unraisable.exc_type, KeyboardInterrupt | SystemExit):
            self._reported(unraisable)
            return
        _send_again(self.status - 128)


def _send_again(number: int) -> None:
    again = threading.Timer(SOON, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _is_tracing(frame: FrameType | None) -> bool:
    """Whether a frame lies within torch's tracing."""
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(TRACERS):
            return True
        frame = frame.f_back
    return False


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
