"""Time and memory: percentiles on a clock of our own, and a process's memory against what it was made to hold."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from truecast.measure.memory import (
    MIB,
    STATUS,
    anonymous_of_tree,
    device_memory,
    folder_bytes,
    own_memory,
    parse_status,
)
from truecast.measure.timing import FEWEST, summary, time_calls

linux = pytest.mark.skipif(not STATUS.is_file(), reason="the system has no /proc")


class Clock:
    """A clock that a call moves."""

    def __init__(self, *durations: float) -> None:
        self.now, self.calls, self._durations = 0.0, 0, durations

    def __call__(self) -> float:
        return self.now

    def call(self) -> None:
        self.now += self._durations[min(self.calls, len(self._durations) - 1)]
        self.calls += 1


def test_percentiles_are_of_the_calls_after_the_warm_up() -> None:
    clock = Clock(9.0, 9.0, *(0.001 * number for number in range(1, 102)))
    timing = time_calls(clock.call, 2, 101, 1e9, clock)
    assert (timing.p50, timing.p90, timing.p99) == pytest.approx((51.0, 91.0, 100.0))
    assert timing.mean == pytest.approx(51.0)
    assert timing.calls == 101
    assert timing.seconds == pytest.approx(0.001 * 101 * 51)


def test_slow_calls_stop_early_but_not_before_a_percentile_means_something() -> None:
    clock = Clock(2.0)
    assert time_calls(clock.call, 0, 50, 3.0, clock).calls == FEWEST
    clock = Clock(1.0)
    assert time_calls(clock.call, 0, 50, 8.0, clock).calls == 8


def test_a_single_duration_is_its_own_percentile() -> None:
    assert summary([0.25]).p99 == 250.0


def test_the_status_file_is_read_in_bytes() -> None:
    text = "Name:\tpython\nVmHWM:\t   300 kB\nRssAnon:\t   100 kB\nRssFile:\t    50 kB\nRssShmem:\t     4 kB\n"
    memory = parse_status(text)
    assert (memory.anonymous, memory.file_backed, memory.peak) == (104 << 10, 50 << 10, 300 << 10)


@linux
def test_anonymous_and_mapped_memory_are_told_apart(tmp_path: Path) -> None:
    size, slack = 64 * MIB, 8 * MIB
    file = tmp_path / "weights"
    file.write_bytes(b"\1" * size)
    before = own_memory()
    held = np.ones(size, np.uint8)
    after = own_memory()
    assert abs(after.anonymous - before.anonymous - size) < slack
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        total = int(np.frombuffer(mapped, np.uint8)[:: mmap.PAGESIZE].sum())
        mapped_now = own_memory()
        assert total == size // mmap.PAGESIZE
    assert abs(mapped_now.file_backed - after.file_backed - size) < slack
    assert abs(mapped_now.anonymous - after.anonymous) < slack
    assert held[-1] == 1


@linux
def test_memory_of_a_process_counts_its_children() -> None:
    child = "import sys; held = b'1' * (48 << 20); print('ready', flush=True); sys.stdin.read()"
    parent = (
        "import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=subprocess.PIPE); "
        "sys.stdin.read(); c.communicate()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent, child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert anonymous_of_tree(psutil.Process(process.pid)) > 48 * MIB
    process.communicate()
    process.wait()
    with pytest.raises(psutil.NoSuchProcess):
        psutil.Process(process.pid)


def test_a_process_that_ended_holds_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    watched = psutil.Process(process.pid)
    process.wait()
    assert anonymous_of_tree(watched) == 0


def test_sizes_count_every_file(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "a").write_bytes(b"12")
    (tmp_path / "below" / "b").write_bytes(b"345")
    assert folder_bytes(tmp_path) == 5
    assert folder_bytes(tmp_path / "a") == 2


def test_device_memory_is_what_the_drivers_tool_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device_memory() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 100\necho 23\n")
    tool.chmod(0o755)
    assert device_memory() == 123 * MIB
    tool.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert device_memory() is None
    assert os.access(tool, os.X_OK)
