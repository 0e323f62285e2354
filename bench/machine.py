"""What the benchmark ran on, and how much of it others used meanwhile."""

from __future__ import annotations

import os
import platform
from pathlib import Path

FEATURES = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
    "sve",
)
"""Processor features that the kernels of the contenders choose by."""


def describe() -> dict[str, str]:
    """The processor, its features, memory and system, as the kernel tells them."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    flags = (fields.get("flags") or fields.get("Features", "")).split()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": fields.get("model name", platform.machine()),
        "features": " ".join(name for name in FEATURES if name in flags),
        "cores": str(os.cpu_count()),
        "cache": fields.get("cache size", "unknown"),
        "memory": f"{pages / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def pin(count: int) -> list[int]:
    """Confines this process, and all it will start, to `count` processors on different cores; returns them."""
    chosen: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        chosen.setdefault(siblings.read_text(encoding="ascii") if siblings.exists() else str(cpu), cpu)
    cpus = list(chosen.values())[:count]
    os.sched_setaffinity(0, cpus)
    return cpus


def busy_seconds(cpus: list[int]) -> float:
    """Processor time that `cpus` spent on anything since the machine started, in seconds; stolen time counts."""
    lines = (line.split() for line in Path("/proc/stat").read_text(encoding="ascii").splitlines())
    names = {f"cpu{cpu}" for cpu in cpus}
    ticks = sum(sum(map(int, fields[1:9])) - int(fields[4]) - int(fields[5]) for fields in lines if fields[0] in names)
    return ticks / os.sysconf("SC_CLK_TCK")


def process_seconds(pid: int) -> float:
    """Processor time that the process `pid` has used, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
