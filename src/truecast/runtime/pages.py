"""Weights in huge pages: decoding reads every weight once per token, and 4 KiB pages make it wait for page tables.

Measured on a virtual machine (processor time per token of the 0.5 B shape, one thread, six runs each): 25 to 31 ms in
4 KiB pages, by the luck of their placement, 22.5 to 24 ms in huge ones. Linux makes such pages by itself only where
the administrator chose `always`; elsewhere a program has to ask.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

HUGE = 2 << 20
"""Bytes of a huge page on x86-64, and on Arm with pages of 4 KiB."""
COLLAPSE = 25
"""MADV_COLLAPSE, since Linux 6.1 (include/uapi/asm-generic/mman-common.h): gathers pages into huge ones at once."""
MAPS = Path("/proc/self/maps")

Region = tuple[int, int]
"""First address and the one behind the last."""


def use_huge_pages() -> int:
    """Gathers this process's private memory into huge pages where the system can; returns the bytes gathered.

    Only a hint to the system: contents and addresses stay, no more memory is used, and where it is not possible (other
    systems, older kernels, no free huge pages) nothing changes.
    """
    if not sys.platform.startswith("linux") or not MAPS.is_file():
        return 0
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    regions = list(whole_pages(anonymous(MAPS.read_text().splitlines())))
    return sum(end - start for start, end in regions if madvise(start, end - start, COLLAPSE) == 0)


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
