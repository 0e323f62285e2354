"""What a loaded model leaves to be done in memory: huge pages for the weights, none for what loading left behind.

Decoding reads every weight once per token, and 4 KiB pages make it wait for page tables. Measured on a virtual machine
(processor time per token of the 0.5 B shape, one thread, six runs each): 25 to 31 ms in 4 KiB pages, by the luck of
their placement, 22.5 to 24 ms in huge ones. Linux makes such pages by itself only where the administrator chose
`always`; elsewhere a program has to ask. Giving back what loading left took the same model from 548 to 492 MB.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

HUGE = 2 << 20
"""Bytes of a huge page on x86-64, and on Arm with pages of 4 KiB."""
COLLAPSE = 25
"""MADV_COLLAPSE, since Linux 6.1 (include/uapi/asm-generic/mman-common.h): gathers pages into huge ones at once."""
FORGET = 4
"""MADV_DONTNEED: the pages of an unchanged file go, and come back from it when they are read."""
MAPS = Path("/proc/self/maps")
REGIONS = Path("/proc/self/smaps")

Region = tuple[int, int]
"""First address and the one behind the last."""


def use_huge_pages() -> int:
    """Gathers this process's private memory into huge pages where the system can; returns the bytes gathered.

    Only a hint to the system: contents and addresses stay, no more memory is used, and where it is not possible (other
    systems, older kernels, no free huge pages) nothing changes.
    """
    if not sys.platform.startswith("linux") or not MAPS.is_file():
        return 0
    return _advise(list(whole_pages(anonymous(MAPS.read_text().splitlines()))), COLLAPSE)


def release_leftovers(folder: Path) -> int:
    """Gives back what loading a model from `folder` left resident; returns the bytes of file pages that may go.

    ONNX Runtime has packed most weights into memory of its own, and the mapped originals are read again only where a
    token's row is looked up. Freed memory goes back to the system, too, where the C library is glibc.
    """
    if not sys.platform.startswith("linux") or not REGIONS.is_file():
        return 0
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return _advise(list(unchanged(REGIONS.read_text(), folder)), FORGET)


def _advise(regions: Iterable[Region], advice: int) -> int:
    """Gives the system an advice on regions; returns the bytes for which it was taken."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return sum(end - start for start, end in regions if madvise(start, end - start, advice) == 0)


def unchanged(smaps: str, folder: Path) -> Iterator[Region]:
    """The regions of /proc/self/smaps that map files of `folder` and of which this process changed no page."""
    for entry in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", smaps):
        head, *facts = entry.splitlines()
        fields = head.split(maxsplit=5)
        values = {
            name: int(rest.split()[0])
            for name, _, rest in (fact.partition(":") for fact in facts)
            if rest.endswith("kB")
        }
        if len(fields) == 6 and values.get("Anonymous") == 0 and Path(fields[5]).parent == folder:
            start, end = (int(part, 16) for part in fields[0].split("-"))
            yield start, end


def anonymous(maps: Iterable[str]) -> Iterator[Region]:
    """The writable regions of /proc/self/maps that belong to no file: the heap and what was allocated beside it."""
    for line in maps:
        fields = line.split()
        if fields[1] == "rw-p" and (len(fields) == 5 or fields[5] == "[heap]"):
            start, end = (int(part, 16) for part in fields[0].split("-"))
            yield start, end


def whole_pages(regions: Iterable[Region]) -> Iterator[Region]:
    """The whole huge pages within each region, left out where there are none."""
    for start, end in regions:
        first, behind = -(-start // HUGE) * HUGE, end // HUGE * HUGE
        if first < behind:
            yield first, behind
