"""The memory of a process and of those it started, read from /proc.

Anonymous memory is what the process itself filled and only it can give back. File-backed memory is the part of mapped
files that is resident at the moment: the kernel may drop it at any time, at no loss. They are reported apart, from
`RssAnon` and `RssFile` (with `RssShmem`) of /proc/PID/status, added over the process tree; a page that several
processes of the tree map is counted once for each.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

PERIOD_SECONDS = 0.01
"""Between two readings; one takes some 50 µs."""
FAMILY_PERIOD = 10
"""Readings between two searches for new child processes, which take longer."""
KIB = 1024


@dataclass(frozen=True)
class Memory:
    """Bytes resident at one moment, or the peaks of each of the three over time (then they need not add up)."""

    anonymous: int = 0
    file: int = 0
    total: int = 0

    def peak(self, other: Memory) -> Memory:
        """The larger of each."""
        pairs = zip(self.values, other.values, strict=True)
        return Memory(*(max(pair) for pair in pairs))

    @property
    def values(self) -> tuple[int, int, int]:
        """The three numbers, in the order of the fields."""
        return self.anonymous, self.file, self.total


@dataclass(frozen=True)
class Run:
    """What one command took."""

    seconds: float
    memory: Memory
    status: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def now(pids: Sequence[int]) -> Memory:
    """The memory of the processes `pids` at this moment; one that has ended counts as nothing."""
    anonymous = file = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        kib = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines() if line.startswith("Rss")}
        anonymous += kib.get("RssAnon", 0) * KIB
        file += (kib.get("RssFile", 0) + kib.get("RssShmem", 0)) * KIB
    return Memory(anonymous, file, anonymous + file)


def family(pid: int) -> list[int]:
    """The process `pid` and everything it started, directly or not."""
    parents = {int(folder.name): _parent(folder) for folder in Path("/proc").iterdir() if folder.name.isdigit()}
    found, fresh = [pid], [pid]
    while fresh:
        fresh = [child for child, parent in parents.items() if parent in fresh]
        found += fresh
    return found


def _parent(folder: Path) -> int | None:
    """The parent of the process whose /proc entry is `folder`; None when it has ended."""
    try:
        return int((folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


class Watch:
    """Follows a process tree's memory while the `with` block runs; `peak` holds the result."""

    def __init__(self, pid: int) -> None:
        """Follows process `pid`."""
        self.pid, self.peak = pid, Memory()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Watch:
        """Starts to follow."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends following."""
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        reading, pids = 0, [self.pid]
        while not self._over.is_set():
            if reading % FAMILY_PERIOD == 0:
                pids = family(self.pid)
            self.peak = self.peak.peak(now(pids))
            reading += 1
            time.sleep(PERIOD_SECONDS)


def measure(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Run:
    """Runs a command to its end, its output in the file `log`, and reports its time and memory.

    Not by `ru_maxrss`: to a process it counts what the one that started it held, who may have made a checkpoint.
    """
    with log.open("w") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=dict(environment), stdout=output, stderr=subprocess.STDOUT)
        with Watch(process.pid) as watch:
            status = process.wait()
            seconds = time.perf_counter() - start
    return Run(seconds, watch.peak, status)
