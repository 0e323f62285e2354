"""Memory of a process: what only it can hold (anonymous) apart from what is mapped from files and may be dropped."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

STATUS = Path("/proc/self/status")
MIB = 1 << 20


@dataclass(frozen=True)
class Memory:
    """Resident bytes: `anonymous` and `file_backed` now, `peak` of both together since the process began.

    A weight file that is mapped counts as file-backed: processes share it, and the system takes it back under pressure.
    """

    anonymous: int
    file_backed: int
    peak: int


def own_memory() -> Memory:
    """This process's memory; where the system does not tell files apart, all of it counts as anonymous."""
    if STATUS.is_file():
        return parse_status(STATUS.read_text(encoding="ascii", errors="replace"))
    info = psutil.Process().memory_info()
    return Memory(info.rss, 0, getattr(info, "peak_wset", info.rss))


def parse_status(text: str) -> Memory:
    """Reads the text of /proc/PID/status; shared memory (RssShmem) counts as anonymous, no file backs it."""
    fields = {key: value for key, _, value in (line.partition(":") for line in text.splitlines())}
    kib = {key: int(fields[key].split()[0]) for key in ("RssAnon", "RssFile", "RssShmem", "VmHWM") if key in fields}
    anonymous = kib.get("RssAnon", 0) + kib.get("RssShmem", 0)
    return Memory(1024 * anonymous, 1024 * kib.get("RssFile", 0), 1024 * kib.get("VmHWM", 0))


def anonymous_of_tree(process: psutil.Process) -> int:
    """Anonymous bytes of a process and all that it started; what has ended meanwhile counts nothing."""
    try:
        members = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_anonymous(member) for member in members)


def _anonymous(process: psutil.Process) -> int:
    try:
        info = process.memory_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return int(info.rss - getattr(info, "shared", 0))


def device_memory() -> int | None:
    """Bytes in use on all NVIDIA devices that this process may see; None where the driver's tool is missing or silent.

    Of the whole device, since processes inside containers cannot be told apart; subtract what was in use before.
    """
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    if devices := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={devices}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return MIB * sum(int(line) for line in done.stdout.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def folder_bytes(place: Path) -> int:
    """Bytes of a file, or of all files in a folder (what links lead to counts, too)."""
    if place.is_file():
        return place.stat().st_size
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
