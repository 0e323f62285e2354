"""A tiny checkpoint and an artifact of it, made once for all tests that look at them from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

import truecast
from tests.conformance.cases import BY_NAME
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that no test may change."""
    return tiny_checkpoint(BY_NAME["llama_tied"], tmp_path_factory.mktemp("pristine") / "checkpoint")


@pytest.fixture(scope="session")
def pristine_artifact(pristine: Path) -> Path:
    """A proven int4 artifact of the tiny checkpoint that no test may change."""
    return truecast.export(pristine, pristine.with_name("artifact"), precision="int4").folder
