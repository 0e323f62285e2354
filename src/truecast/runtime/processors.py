"""How many threads this process can really use.

ONNX Runtime's own default is the number of physical cores of the host: it sees neither a cgroup's quota nor, on every
system, the affinity mask. More threads than processors spin against each other (measured on 2 shared cores: half the
speed), so the count is worked out here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")
CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def default_threads() -> int:
    """Physical cores this process may run on, capped by the processor quota of its cgroups; at least 1."""
    return max(1, min(allowed_cores(), quota(CGROUP_ROOT, OWN_CGROUPS)))


def allowed_cores(topology: Path = TOPOLOGY) -> int:
    """Distinct physical cores in the affinity mask (two hyperthreads of a core count once)."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return len({_siblings(topology / f"cpu{cpu}") or str(cpu) for cpu in os.sched_getaffinity(0)})


def _siblings(cpu: Path) -> str:
    file = cpu / "topology" / "thread_siblings_list"
    return file.read_text().strip() if file.is_file() else ""


def quota(root: Path, own: Path) -> int:
    """The smallest processor quota among the own cgroups and their parents, rounded up; a large number when none."""
    limits = [limit for folder in _cgroup_folders(root, own) for limit in _limits(folder)]
    return max(1, math.ceil(min(limits))) if limits else 1 << 16


def _cgroup_folders(root: Path, own: Path) -> Iterator[Path]:
    """The own cgroup folders and every parent, for version 2 (one tree) and version 1 (a tree per controller)."""
    yield from (root, root / "cpu")
    if not own.is_file():
        return
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        base = root / "cpu" if "cpu" in controllers.split(",") else root
        if controllers and base == root:
            continue
        relative = Path(path.lstrip("/"))
        yield from (base / part for part in (relative, *relative.parents))


def _limits(folder: Path) -> Iterator[float]:
    """Quotas, in processors, of one cgroup folder: `cpu.max` holds "quota period", version 1 two files (-1: none)."""
    unified = folder / "cpu.max"
    if unified.is_file():
        limit, period = unified.read_text().split()
        if limit != "max":
            yield int(limit) / int(period)
    limit_file, period_file = folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
    if limit_file.is_file() and period_file.is_file() and int(limit_file.read_text()) > 0:
        yield int(limit_file.read_text()) / int(period_file.read_text())
