"""Export and run need nothing that only Linux has: what macOS and Windows lack is taken away, and both are done."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest

from truecast.artifact import Status, read_manifest
from truecast.cli import main

NOT_ON_MACOS = {
    os: ("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "copy_file_range", "memfd_create", "splice"),
    signal: ("sigtimedwait",),
}
NOT_ON_WINDOWS = {
    os: ("fork", "killpg", "getpgid", "setsid", "getuid", "geteuid", "mkfifo", "pread", "preadv"),
    signal: ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGALRM", "alarm", "setitimer", "pthread_sigmask"),
}
MODULES_NOT_ON_WINDOWS = ("fcntl", "resource", "pwd", "grp", "termios")
LINUX_FOLDERS = ("/proc", "/sys")


def without(monkeypatch: pytest.MonkeyPatch, lacking: dict[ModuleType, tuple[str, ...]]) -> None:
    for module, names in lacking.items():
        for name in names:
            monkeypatch.delattr(module, name, raising=False)
    plain = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: not str(path).startswith(LINUX_FOLDERS) and plain(path))


def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' own: the lock of its C library, and the name that psutil has for the peak there."""
    without(monkeypatch, NOT_ON_MACOS)
    without(monkeypatch, NOT_ON_WINDOWS)
    for name in MODULES_NOT_ON_WINDOWS:
        monkeypatch.setitem(sys.modules, name, None)
    library: Any = ModuleType("msvcrt")
    library.LK_NBLCK, library.locking = 2, lambda number, mode, count: None
    monkeypatch.setitem(sys.modules, "msvcrt", library)
    memory = SimpleNamespace(rss=1 << 30, peak_wset=1 << 30)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda process: memory)
    monkeypatch.setattr(sys, "platform", "win32")


def macos(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, NOT_ON_MACOS)
    monkeypatch.setattr(sys, "platform", "darwin")


@pytest.mark.parametrize(("system", "options"), [(windows, []), (macos, ["--no-verify"])])
def test_a_model_is_exported_and_run(
    system: Any, options: list[str], pristine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        system(patch)
        assert main(["export", str(pristine), str(out), "--precision", "int4", "--quiet", *options]) == 0
        assert main(["run", str(out), "a", "--max-new-tokens", "2"]) == 0
    wanted = Status.UNPROVEN if options else Status.PROVEN
    assert (read_manifest(out).certificate.status, capsys.readouterr().err) == (wanted, "")
