"""Models of a few positions are cast and proven as any other: no part of the trace or of the proof is longer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import truecast
from tests.conformance.cases import BY_NAME as DECODERS
from tests.conformance.encoders import BY_NAME as ENCODERS
from tests.tiny import tiny_checkpoint
from truecast.artifact import Status


@pytest.mark.parametrize(
    ("name", "positions", "precision"),
    [("llama", 16, "int4"), ("llama", 3, "int4"), ("llama", 1, "fp32"), ("bert", 16, "int4"), ("bert", 1, "fp32")],
)
def test_a_model_of_few_positions_is_proven(name: str, positions: int, precision: str, tmp_path: Path) -> None:
    case = {**DECODERS, **ENCODERS}[name]
    short = {"num_hidden_layers": 1, "max_position_embeddings": positions}
    tiny_checkpoint(replace(case, settings={**case.settings, **short}), tmp_path / "source")
    made = truecast.export(tmp_path / "source", tmp_path / "out", precision=precision)
    assert made.manifest.certificate.status is Status.PROVEN
