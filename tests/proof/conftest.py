"""Unproven artifacts of tiny checkpoints, made once, and copies of them that a test may spoil."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import truecast
from tests.conformance.cases import BY_NAME
from tests.encoders import classifier
from tests.tiny import tiny_checkpoint

Artifact = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are faster on one thread of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Exports a case without proving it, once for each set of options; no test may change the result."""
    folder = tmp_path_factory.mktemp("proof")

    def make(case: str, precision: str, target: str = "onnxruntime", method: str = "rtn") -> Path:
        source, out = folder / case, folder / f"{case}-{precision}-{target}-{method}"
        if not source.exists():
            tiny_checkpoint(BY_NAME[case], source)
        if not out.exists():
            truecast.export(source, out, precision=precision, target=target, method=method, verify=False)
        return out

    return make


@pytest.fixture
def spoilable(made: Artifact, tmp_path: Path) -> Artifact:
    """A copy of an artifact, for this test alone."""

    def copy(case: str, precision: str, target: str = "onnxruntime", method: str = "rtn") -> Path:
        return Path(shutil.copytree(made(case, precision, target, method), tmp_path / "artifact"))

    return copy


@pytest.fixture(scope="session")
def made_classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports a classifier of texts in a precision, without proving it; no test may change the result."""
    folder = tmp_path_factory.mktemp("classifier")

    def make(precision: str) -> Path:
        source, out = folder / "source", folder / precision
        if not source.exists():
            classifier(source)
        if not out.exists():
            truecast.export(source, out, precision=precision, verify=False)
        return out

    return make


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a folder to a place that this test may spoil."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copy"))
