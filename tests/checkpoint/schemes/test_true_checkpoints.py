"""True checkpoints of all libraries are read bit for bit, and told apart though they call their tensors alike."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.checkpoint.schemes.stored import DATA, assert_rows_agree, digest, from_encoding, oracle, save
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.safetensors_format import SINGLE_NAME

LIBRARIES = {
    "auto-round-3bit": "AutoRound",
    "auto-round-4bit": "AutoRound",
    "auto-round-5bit": "AutoRound",
    "auto-round-awq": "AWQ",
    "auto-round-ct": "compressed-tensors",
    "auto-round-fp8": "FP8",
    "auto-round-gptq": "GPTQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "gptqmodel": "GPTQ",
    "gptqmodel-awq": "AWQ",
    "hqq": "HQQ",
    "mlx": "MLX",
    "quark": "Quark",
    "torchao": "torchao",
}
"""What the folders hold, by the longest beginning of their names."""
STORED_AS = {
    "auto-round-3bit-asym": "AutoRound 3-bit, group 32",
    "auto-round-4bit-asym": "AutoRound 4-bit (gemm), group 32",
    "auto-round-4bit-head": "AutoRound 4-bit, group 32",
    "auto-round-5bit-asym": "AutoRound 5-bit, group 32",
    "auto-round-awq": "AWQ 4-bit (gemm), group 32",
    "auto-round-awq-sym": "AWQ 4-bit (gemm), group 32",
    "auto-round-gptq-2bit-asym": "GPTQ 2-bit, group 32",
    "auto-round-gptq-3bit-asym": "GPTQ 3-bit, group 32",
    "auto-round-gptq-4bit": "GPTQ 4-bit, group 32",
    "auto-round-gptq-4bit-asym": "GPTQ 4-bit, group 32",
    "auto-round-gptq-8bit-row": "GPTQ 8-bit, group 64",
    "gptqmodel-3bit-planes": "GPTQ 3-bit, group 32",
    "gptqmodel-6bit-planes": "GPTQ 6-bit, group 32",
    "gptqmodel-act-order": "GPTQ 4-bit, group 32, act-order",
    "gptqmodel-act-order-v2": "GPTQ 4-bit, group 32, act-order",
    "gptqmodel-awq-gemv": "AWQ 4-bit (gemv), group 128",
    "gptqmodel-awq-gemv-fast": "AWQ 4-bit (gemv_fast), group 64",
    "gptqmodel-awq-llm-awq": "AWQ 4-bit (gemv_fast), group 32",
    "gptqmodel-dynamic-head": "GPTQ 4-bit, group 32",
    "gptqmodel-positive": "GPTQ 4-bit, group 32",
    "gptqmodel-positive-3bit": "GPTQ 3-bit, group 32",
    "mlx": "MLX affine 3-bit, group 64",
}
"""The words for the storage of `PROJECTION`, or of the one weight that a folder holds."""
PROJECTION, UP_PROJECTION = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
FOLDERS = sorted(path.parent.name for path in DATA.glob("*/oracle.json"))
CASES = [(name, weight) for name in FOLDERS for weight in oracle(name)]
ROUNDED = {"bitsandbytes-int8", "hqq-axis1-group16"}
"""Decoded in another order of operations through the encoding, which the tests of these libraries bound."""
DECIDED = [name for name in FOLDERS if name.startswith(("compressed-tensors-", "auto-round-ct-", "auto-round-fp8-"))]
UNDECIDED = {"compressed-tensors-integers"}
"""Read with their config.json only: 8 bits fill as many words as 7 with waste."""

checkpoint_of = functools.cache(lambda name: open_checkpoint(DATA / name))


@pytest.mark.parametrize(("name", "weight"), CASES)
def test_a_weight_is_what_the_library_decodes(name: str, weight: str) -> None:
    tensor = checkpoint_of(name).tensors[weight]
    assert digest(tensor.read()) == oracle(name)[weight]
    if tensor.encoding is not None and name not in ROUNDED:
        assert digest(from_encoding(tensor)) == oracle(name)[weight]
    assert_rows_agree(tensor)


@pytest.mark.parametrize("name", FOLDERS)
def test_exactly_the_weights_that_the_library_quantized_are_read_as_its_own(name: str) -> None:
    checkpoint = checkpoint_of(name)
    assert checkpoint.quantization == LIBRARIES[max(filter(name.startswith, LIBRARIES), key=len)]
    assert {key for key, tensor in checkpoint.tensors.items() if tensor.parts} == set(oracle(name))


@pytest.mark.parametrize("name", STORED_AS)
def test_the_user_is_told_how_a_weight_is_stored(name: str) -> None:
    tensors = checkpoint_of(name).tensors
    place = next(place for place in (PROJECTION, UP_PROJECTION, "p.weight") if place in tensors)
    assert tensors[place].stored_as == STORED_AS[name]


@pytest.mark.parametrize("name", [name for name in DECIDED if name not in UNDECIDED])
def test_the_tensors_alone_give_the_same_weights(name: str, tmp_path: Path) -> None:
    config = json.loads((DATA / name / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copyfile(DATA / name / SINGLE_NAME, tmp_path / SINGLE_NAME)
    tensors = open_checkpoint(tmp_path).tensors
    assert {key: digest(tensors[key].read()) for key in oracle(name)} == oracle(name)


@pytest.mark.parametrize(
    ("method", "library"),
    [
        ("compressed-tensors", "compressed-tensors"),
        ("fbgemm_fp8", "FP8"),
        ("modelopt", "ModelOpt"),
        ("quark", "Quark"),
        ("something newer", "compressed-tensors"),
    ],
)
def test_float8_with_a_scale_is_read_alike_and_named_as_announced(method: str, library: str, tmp_path: Path) -> None:
    codes = np.arange(1, 65, dtype=np.uint8).reshape(4, 16).view(ml_dtypes.float8_e4m3fn)
    scale = np.array([0.5, 0.25, 3.0, 0.1], np.float32)
    checkpoint = open_checkpoint(save(tmp_path, {"m.weight": codes, "m.weight_scale": scale}, {"quant_method": method}))
    assert checkpoint.quantization == library
    np.testing.assert_array_equal(checkpoint.tensors["m.weight"].read(), codes.astype(np.float32) * scale[:, None])


def test_bytes_with_a_scale_are_integers_whatever_is_announced(tmp_path: Path) -> None:
    codes = np.arange(-32, 32, dtype=np.int8).reshape(4, 16)
    stored = {"m.weight": codes, "m.weight_scale": np.ones((4, 1), np.float32)}
    checkpoint = open_checkpoint(save(tmp_path, stored, {"quant_method": "fp8"}))
    assert checkpoint.quantization == "compressed-tensors"
    np.testing.assert_array_equal(checkpoint.tensors["m.weight"].read(), codes)
