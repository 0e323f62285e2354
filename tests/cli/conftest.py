"""The command line run in this process, and a checkpoint and an artifact that a test may spoil."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from truecast.cli import main


@dataclass(frozen=True)
class Answer:
    """What a command left behind: exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line of standard error; more or less than one line is a failure."""
        (line,) = self.err.splitlines()
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
