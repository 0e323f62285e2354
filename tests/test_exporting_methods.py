"""Exports whose codes are made here: rules, methods, and what they measure of themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import truecast
from tests.conformance.cases import BY_NAME
from tests.proof.planting import manifest_of
from tests.tiny import tiny_checkpoint
from truecast.artifact import Manifest, Status
from truecast.checkpoint import open_checkpoint
from truecast.errors import InputError
from truecast.proof.held import held_weights, load_graph
from truecast.proof.reference import Reference

Q_PROJ, UP_PROJ, DOWN_PROJ = (
    f"model.layers.{{}}.{part}.weight" for part in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
)
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(BY_NAME["qwen3"], tmp_path_factory.mktemp("methods") / "checkpoint")


def packing_of(manifest: Manifest, tensor: str) -> str:
    return next(info.packing for info in manifest.weights if tensor in info.sources)


# Rules ----------------------------------------------------------------------------------------------------------------


def test_rules_give_weights_their_precision_and_the_proof_holds(pristine: Path, tmp_path: Path) -> None:
    rules = ["lm_head=int8", "layers.0.*=fp32", "layers.0.mlp.*=as-is", "*q_proj=int8"]
    artifact = truecast.export(
        pristine, tmp_path / "out", precision="int4", method="k-quant", block_size=16, keep=rules
    )
    manifest = artifact.manifest
    assert manifest.certificate.status is Status.PROVEN
    assert manifest.settings == {"block_size": 16, "method": "k-quant", "activations": "int8", "keep": rules}
    assert packing_of(manifest, EMBEDDING).startswith("int8 block 16")  # the other name of the head
    assert packing_of(manifest, Q_PROJ.format(0)).startswith("int8 block 16")  # the last rule that matches
    assert packing_of(manifest, "model.layers.0.self_attn.k_proj.weight").startswith("dense float32")
    assert packing_of(manifest, UP_PROJ.format(0)).startswith("dense float32")
    assert packing_of(manifest, UP_PROJ.format(1)) == "int4 block 16, k-quant"


def test_floats_may_be_quantized_in_places(pristine: Path, tmp_path: Path) -> None:
    artifact = truecast.export(pristine, tmp_path / "out", precision="fp32", keep=["*down_proj=int8"])
    manifest = artifact.manifest
    assert manifest.certificate.status is Status.PROVEN
    assert packing_of(manifest, DOWN_PROJ.format(1)) == "int8 block 32, symmetric"
    assert packing_of(manifest, UP_PROJ.format(1)).startswith("dense float32")
    assert set(manifest.certificate.signal_to_noise) == {DOWN_PROJ.format(0), DOWN_PROJ.format(1)}
    assert any(check.name == "price of the format, mean KL" for check in manifest.certificate.checks)


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        (["lm_head=int8", "embed_tokens=fp32"], "The head and the token embedding are one weight, but --keep gives"),
        (["layers.9.*=int8"], "--keep 'layers.9.*=int8' matches no weight of the model"),
        (["*norm*=int8"], "matches no weight of the model"),
        (["lm_head=int5"], "asks for 'int5'; a rule gives one of as-is, fp32, int8, int4"),
        (["lm_head"], "is no rule; write PATTERN=PRECISION"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(
    rules: list[str], sentence: str, pristine: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        truecast.export(pristine, tmp_path / "out", precision="int4", keep=rules)
    assert sentence in str(refused.value)
    assert list(tmp_path.iterdir()) == []


# Methods --------------------------------------------------------------------------------------------------------------


def text(folder: Path) -> Path:
    path = folder / "text.jsonl"
    rows = ("A lighthouse keeper counts the waves at night.", "Bread needs four things: flour, water, salt and time.")
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def exported(source: Path, out: Path, **options: Any) -> Manifest:
    return truecast.export(source, out, precision="int4", block_size=16, **options).manifest


@pytest.mark.parametrize("method", ["k-quant", "hqq"])
def test_a_method_is_proven_measured_and_repeatable(method: str, untied: Path, tmp_path: Path) -> None:
    manifest = exported(untied, tmp_path / "out", method=method, calibration=text(tmp_path))
    assert manifest.certificate.status is Status.PROVEN
    assert manifest.settings["method"] == method and len(manifest.settings["calibration"]) == 64
    price = next(c for c in manifest.certificate.checks if c.name == "price of the format, calibration text, mean KL")
    assert price.measured is not None and 0 < price.measured < 1 and price.detail.startswith("99 positions")
    again = exported(untied, tmp_path / "again", method=method, verify=False)
    assert again.files == manifest.files
    assert again.weights == manifest.weights
    assert again.certificate.status is Status.UNPROVEN
    assert again.certificate.signal_to_noise == manifest.certificate.signal_to_noise


def test_the_noise_is_that_of_the_weights(untied: Path, tmp_path: Path) -> None:
    manifest = exported(untied, tmp_path / "out", method="hqq", verify=False)
    reference = Reference.build(open_checkpoint(untied))
    held = held_weights(load_graph(tmp_path / "out", "model.onnx"), manifest.weights, reference.sources)
    name = DOWN_PROJ.format(1)
    values, kept = reference.sources[name].read(), held[name].rows(0, held[name].shape[0])
    expected = 10 * np.log10(np.square(values).sum() / np.square(values - kept).sum())
    assert manifest.certificate.signal_to_noise[name] == pytest.approx(expected, abs=0.02)
    quantized = {source for info in manifest.weights if info.packing.startswith("int4") for source in info.sources}
    assert set(manifest.certificate.signal_to_noise) == quantized


def test_without_a_proof_plain_rounding_measures_nothing(
    pristine_artifact: Path, pristine: Path, tmp_path: Path
) -> None:
    assert manifest_of(pristine_artifact).certificate.signal_to_noise
    assert exported(pristine, tmp_path / "out", verify=False).certificate.signal_to_noise == {}


def test_floats_have_no_noise(pristine: Path, tmp_path: Path) -> None:
    assert truecast.export(pristine, tmp_path / "out", precision="fp32").manifest.certificate.signal_to_noise == {}
