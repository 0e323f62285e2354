"""The definitions decode true checkpoints as their libraries do, and show what the exporter's reader misreads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import truecast
from tests.checkpoint.schemes.stored import DATA, digest, oracle, save
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.schemes import (
    awq,
    bitsandbytes,
    compressed_integers,
    compressed_tensors,
    gptq,
    hqq,
    minifloats,
    mxfp4,
    quark,
    torchao,
)
from truecast.checkpoint.schemes.nibbles import PLAIN
from truecast.checkpoint.schemes.parts import byte_rows
from truecast.errors import ProofError
from truecast.proof.source.checks import definition_faults
from truecast.proof.source.definitions import decoded, files_of

FOLDERS = sorted(path.parent.name for path in DATA.glob("*/oracle.json"))


@pytest.mark.parametrize("name", FOLDERS)
def test_true_checkpoints_are_decoded_as_by_their_library(name: str) -> None:
    tensors = decoded(DATA / name)
    assert {weight: digest(tensors[weight][...].numpy()) for weight in oracle(name)} == oracle(name)
    assert not definition_faults(open_checkpoint(DATA / name))


def test_both_scales_of_model_optimizer_are_multiplied(tmp_path: Path) -> None:
    scale = np.array([[0.5, 2.0], [1.5, 3.0]]).astype(ml_dtypes.float8_e4m3fn)
    parts = {"m.weight": np.arange(32, dtype=np.uint8).reshape(2, 16), "m.weight_scale": scale}
    folder = save(tmp_path, {**parts, "m.weight_scale_2": np.array([0.3], np.float32)}, {"quant_method": "modelopt"})
    assert not definition_faults(open_checkpoint(folder))


Plant = Callable[[pytest.MonkeyPatch], None]


def setting(place: Any, name: str, value: Any) -> Plant:
    return lambda patch: patch.setattr(place, name, value)


def one_more(patch: pytest.MonkeyPatch) -> None:
    """Zero points as if the stored ones were one less, or one less again."""
    plain = gptq._zero_points
    patch.setattr(gptq, "_zero_points", lambda *given: plain(*given) + np.uint8(1))


def unordered(patch: pytest.MonkeyPatch) -> None:
    plain = gptq._groups
    patch.setattr(gptq, "_groups", lambda *given: (plain(*given)[0], None))


def multiplied(patch: pytest.MonkeyPatch) -> None:
    """The scale of the tensor multiplied instead of divided by."""
    plain = compressed_tensors._divided

    def times(module: Any) -> Any:
        factor, square = plain(module), module["weight_global_scale"].read().astype(np.float32) ** 2
        return replace(factor, read=lambda start, stop: factor.read(start, stop) * square)

    patch.setattr(compressed_tensors, "_divided", times)


def swapped(patch: pytest.MonkeyPatch) -> None:
    plain = hqq._zero_and_scale
    patch.setattr(hqq, "_zero_and_scale", lambda *given: plain(*given)[::-1])


MISREAD: dict[tuple[str, str], Plant] = {
    ("auto-round-gptq-4bit-asym", "zero points"): one_more,
    ("gptqmodel-act-order", "order of the columns"): unordered,
    ("auto-round-awq", "order of the nibbles"): setting(awq, "INTERLEAVED", PLAIN),
    ("gptqmodel-awq-gemv-fast", "interleaved rows"): setting(
        awq, "fast_rows", lambda words: awq.as_bytes(words).reshape(4 * len(words), -1)
    ),
    ("bitsandbytes-nf4", "order of the nibbles"): setting(bitsandbytes, "_codes_reader", lambda p, w: byte_rows(p)),
    ("bitsandbytes-int8", "scale of a row"): setting(bitsandbytes, "PER_127", np.float32(1 / 128)),
    ("auto-round-ct-int4-asymmetric", "zero points"): setting(compressed_integers, "_zero", lambda *given: 8),
    ("auto-round-ct-nvfp4", "scale of the tensor"): multiplied,
    ("auto-round-ct-mxfp4", "table of values"): setting(minifloats, "E2M1", minifloats.E2M1[::-1].copy()),
    ("auto-round-fp8-blocks", "table of values"): setting(
        minifloats, "float8_table", lambda tensor: np.arange(256, dtype=np.float32)
    ),
    ("hqq-axis1", "zero points and scales"): swapped,
    ("gpt-oss-mxfp4", "exponents"): setting(mxfp4, "PAIRS", np.roll(mxfp4.PAIRS, 256)),
    ("quark-int4", "signs"): setting(quark, "SIGNS", 0),
    ("torchao-int4", "zero points"): setting(torchao, "SIGN", 7),
}


@pytest.mark.parametrize(("name", "what"), MISREAD)
def test_what_the_reader_misreads_is_found(name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MISREAD[name, what](monkeypatch)
    assert any("read with other values" in fault for fault in definition_faults(open_checkpoint(DATA / name)))


def test_an_export_whose_reader_misreads_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_more(monkeypatch)
    with pytest.raises(ProofError, match="weights as the source's own loader reads them"):
        truecast.export(DATA / "auto-round-gptq-4bit-asym", tmp_path / "out")


def test_the_file_that_config_json_names_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": "hf.safetensors"}))
    for name in ("hf.safetensors", "model.safetensors"):
        (tmp_path / name).touch()
    assert files_of(tmp_path) == [tmp_path / "hf.safetensors"]
