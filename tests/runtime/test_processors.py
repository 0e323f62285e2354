"""The number of threads: affinity, hyperthreads, and the quotas of cgroups."""

import os
from pathlib import Path

import pytest

from truecast.runtime.processors import allowed_cores, default_threads, quota


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_default_is_at_least_one_and_within_the_affinity() -> None:
    assert 1 <= default_threads() <= len(os.sched_getaffinity(0))


def test_two_hyperthreads_count_as_one_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    for cpu, siblings in enumerate(("0-1", "0-1", "2-3", "2-3")):
        write(tmp_path / f"cpu{cpu}/topology/thread_siblings_list", siblings + "\n")
    assert allowed_cores(tmp_path) == 2


def test_without_topology_every_allowed_processor_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7})
    assert allowed_cores(tmp_path) == 3


@pytest.mark.parametrize(("text", "processors"), [("200000 100000", 2), ("250000 100000", 3), ("50000 100000", 1)])
def test_quota_of_version_2_rounds_up(tmp_path: Path, text: str, processors: int) -> None:
    write(tmp_path / "cpu.max", text)
    assert quota(tmp_path, tmp_path / "none") == processors


def test_no_quota_does_not_limit(tmp_path: Path) -> None:
    write(tmp_path / "cpu.max", "max 100000")
    assert quota(tmp_path, tmp_path / "none") > 1000


def test_the_tightest_parent_counts(tmp_path: Path) -> None:
    write(tmp_path / "own", "0::/a/b\n")
    write(tmp_path / "a/cpu.max", "150000 100000")
    write(tmp_path / "a/b/cpu.max", "400000 100000")
    assert quota(tmp_path, tmp_path / "own") == 2


def test_quota_of_version_1(tmp_path: Path) -> None:
    write(tmp_path / "own", "4:memory:/m\n3:cpu,cpuacct:/job\n")
    write(tmp_path / "cpu/job/cpu.cfs_quota_us", "300000")
    write(tmp_path / "cpu/job/cpu.cfs_period_us", "100000")
    write(tmp_path / "cpu/cpu.cfs_quota_us", "-1")
    write(tmp_path / "cpu/cpu.cfs_period_us", "100000")
    assert quota(tmp_path, tmp_path / "own") == 3
