"""What a verb cost: seconds and peak memory of this process."""

from __future__ import annotations

import sys
import time
from typing import Self


class Meter:
    """Measures as long as its context lasts: `seconds`, and `peak_bytes` of memory since the process began."""

    def __init__(self) -> None:
        self.seconds, self.peak_bytes = 0.0, 0

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self.peak_bytes = peak_bytes()


def peak_bytes() -> int:
    """The largest resident memory of this process so far, in bytes; memory-mapped files count while they are read."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB
