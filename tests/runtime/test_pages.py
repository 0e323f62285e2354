"""Huge pages: what is asked for, and that the system does it."""

import sys
from pathlib import Path

import numpy as np
import pytest

from truecast.runtime import pages
from truecast.runtime.pages import HUGE, anonymous, use_huge_pages, whole_pages

LINUX_6_1 = (6, 1)
MAPS = """\
555500000000-555500800000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000100000 r-xp 00000000 fe:00 12                         /lib/libc.so.6
7f0000200000-7f0000a00000 rw-p 00000000 00:00 0
7f0001000000-7f0001800000 rw-p 00000000 fe:00 13                         /data/model.onnx.data
7f0002000000-7f0002800000 ---p 00000000 00:00 0
7f0003000000-7f0003800000 rw-s 00000000 00:00 0
7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0                          [stack]
"""


def test_the_heap_and_memory_without_a_file_are_taken() -> None:
    expected = [(0x555500000000, 0x555500800000), (0x7F0000200000, 0x7F0000A00000)]
    assert list(anonymous(MAPS.splitlines())) == expected


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        ((0, 4 * HUGE), [(0, 4 * HUGE)]),
        ((1, 4 * HUGE - 1), [(HUGE, 3 * HUGE)]),
        ((HUGE + 5, 2 * HUGE + 5), []),
        ((5, HUGE - 5), []),
    ],
)
def test_only_whole_pages_are_asked_for(region: tuple[int, int], expected: list[tuple[int, int]]) -> None:
    assert list(whole_pages([region])) == expected


def huge_bytes() -> int:
    """Bytes of this process that are in huge pages."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages:"))


def kernel() -> tuple[int, ...]:
    release = Path("/proc/sys/kernel/osrelease")
    return tuple(int(part) for part in release.read_text().split("-")[0].split(".")[:2]) if release.is_file() else (0,)


@pytest.mark.skipif(kernel() < LINUX_6_1, reason="needs Linux 6.1")
def test_memory_is_gathered_and_keeps_its_content() -> None:
    pieces = [np.full(1 << 17, index, np.int64) for index in range(64)]  # 1 MiB each: NumPy asks for nothing itself
    before = huge_bytes()
    assert use_huge_pages() > 0
    assert huge_bytes() - before >= 16 * HUGE
    assert all((piece == index).all() for index, piece in enumerate(pieces))


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert use_huge_pages() == 0


def test_a_system_without_maps_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pages, "MAPS", tmp_path / "none")
    assert use_huge_pages() == 0
