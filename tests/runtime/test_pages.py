"""Huge pages: what is asked for, and that the system does it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from truecast.runtime import pages
from truecast.runtime.pages import HUGE, anonymous, release_leftovers, unchanged, use_huge_pages, whole_pages

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


FRESH_PROCESS = """
import numpy as np
from pathlib import Path
from truecast.runtime.pages import use_huge_pages

def huge():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages:"))

pieces = [np.full(1 << 17, index, np.int64) for index in range(64)]  # 1 MiB each: NumPy asks for nothing itself
before = huge()
gathered = use_huge_pages()
print(gathered, huge() - before, all((piece == index).all() for index, piece in enumerate(pieces)))
"""
"""A process of its own: in one that has run models before, the memory may be in huge pages already."""


SMAPS = """\
7f0001000000-7f0001800000 rw-p 00000000 fe:00 13                         /data/out/model.onnx.data
Size:               8192 kB
Rss:                8192 kB
Private_Dirty:         8 kB
Anonymous:             0 kB
VmFlags: rd wr mr mw me ac
7f0002000000-7f0002800000 rw-p 00000000 fe:00 13                         /data/out/model.onnx.data
Private_Dirty:         4 kB
Anonymous:             4 kB
7f0003000000-7f0003800000 r--p 00000000 fe:00 14                         /data/other/model.onnx.data
Private_Dirty:         8 kB
Anonymous:             0 kB
7f0004000000-7f0004800000 rw-p 00000000 00:00 0
Private_Dirty:         8 kB
Anonymous:             0 kB
"""


def test_only_files_of_the_folder_that_nobody_wrote_to_are_forgotten() -> None:
    assert list(unchanged(SMAPS, Path("/data/out"))) == [(0x7F0001000000, 0x7F0001800000)]


def test_forgotten_pages_come_back_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx.data"
    np.arange(1 << 20, dtype=np.int64).tofile(path)
    read = np.memmap(path, np.int64, "r")
    written = np.memmap(path, np.int64, "c")
    total = read.sum()
    written[5] = 7
    assert release_leftovers(tmp_path) == read.nbytes
    assert read.sum() == total
    assert written[5] == 7


def kernel() -> tuple[int, ...]:
    release = Path("/proc/sys/kernel/osrelease")
    return tuple(int(part) for part in release.read_text().split("-")[0].split(".")[:2]) if release.is_file() else (0,)


@pytest.mark.skipif(kernel() < LINUX_6_1, reason="needs a machine with Linux 6.1 or later")
def test_memory_is_gathered_and_keeps_its_content() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH_PROCESS], capture_output=True, text=True, check=True)
    gathered, grown, intact = done.stdout.split()
    assert intact == "True"
    if int(gathered):  # nothing, where the system has no free huge pages at the moment
        assert int(grown) >= HUGE


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert use_huge_pages() == 0
    assert release_leftovers(Path("/")) == 0


def test_a_system_without_maps_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pages, "MAPS", tmp_path / "none")
    assert use_huge_pages() == 0
