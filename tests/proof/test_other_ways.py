"""Storages and precisions that take ways of their own through writing and proof: each is proven end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.cases import CASES
from tests.tiny import tiny_checkpoint
from truecast.artifact import Status, read_manifest
from truecast.exporting import export
from truecast.request import Request

CASE = next(case for case in CASES if case.name == "qwen2")


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(Request(precision="fp32", link_weights=True), id="the checkpoint's own bytes, hard-linked"),
        pytest.param(Request(precision="fp16", target="genai"), id="rotation inside float16 attention"),
    ],
)
def test_it_is_proven(request_: Request, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(CASE, tmp_path / "checkpoint")
    manifest = read_manifest(export(checkpoint, tmp_path / "out", request_))
    assert manifest.certificate.status is Status.PROVEN
    assert any("own bytes" in info.packing for info in manifest.weights) == request_.link_weights
