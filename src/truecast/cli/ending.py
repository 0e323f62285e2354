"""How a command ends that did not come to its end: interrupted, or by an error that nobody foresaw."""

from __future__ import annotations

import platform
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Any, Self

INTERRUPTED = 128 + signal.SIGINT
"""As shells report Ctrl-C."""
UNFORESEEN = 3
PACKAGES = ("truecast", "torch", "transformers", "onnx", "onnx-ir", "onnxruntime", "numpy")


class Interruption:
    """Remembers Ctrl-C while it lasts: a library that is just imported may turn it into an error of its own."""

    def __init__(self) -> None:
        self.happened = False

    def __enter__(self) -> Self:
        self._before: Any = signal.getsignal(signal.SIGINT)
        self._ours = self._before is signal.default_int_handler  # else somebody else has a use for it
        if self._ours:
            signal.signal(signal.SIGINT, self._noted)
        return self

    def __exit__(self, *error: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, self._before)

    def _noted(self, number: int, frame: FrameType | None) -> None:
        self.happened = True
        signal.default_int_handler(number, frame)


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
