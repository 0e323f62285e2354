"""The command line run in this process, and a checkpoint and an artifact that a test may spoil."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from truecast.cli import main
from truecast.cli.progress import SIGN


@dataclass(frozen=True)
class Answer:
    """What a command left behind: exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """The lines of standard error but those of progress."""
        return [line for line in self.err.splitlines() if not line.startswith(SIGN)]

    @property
    def sentence(self) -> str:
        """The one line of standard error beside those of progress; more or less than one line is a failure."""
        (line,) = self.complaints
        return line


Command = Callable[..., Answer]


@pytest.fixture
def truecast_(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `truecast` with the given words."""

    def command(*words: object) -> Answer:
        capsys.readouterr()
        status = main([str(word) for word in words])
        return Answer(status, *capsys.readouterr())

    return command


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, for this test alone."""
    return Path(shutil.copytree(pristine, tmp_path / "checkpoint"))


@pytest.fixture
def artifact(pristine_artifact: Path, tmp_path: Path) -> Path:
    """A copy of the artifact, for this test alone."""
    return Path(shutil.copytree(pristine_artifact, tmp_path / "artifact"))
