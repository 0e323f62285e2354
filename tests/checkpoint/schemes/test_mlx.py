"""MLX: codes, scales and biases by its formula; what its settings do not explain is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoint.schemes.stored import MODULE, Array, Parts, assert_rows_agree, refused, save, weight
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.schemes.mlx import SCHEME
from truecast.errors import InputError

ROWS, WIDTH = 6, 128


def packed(codes: Array, bits: int) -> Array:
    """A stream of codes in words, the lowest bits first, through a string of bits."""
    each = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
    return np.packbits(each.reshape(len(codes), -1), axis=-1, bitorder="little").view("<u4")


def parts(bits: int, group: int) -> tuple[Parts, Array]:
    """A module's tensors, and the weight that they stand for."""
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, (ROWS, WIDTH), np.uint8)
    scales, biases = rng.normal(size=(2, ROWS, WIDTH // group)).astype(np.float16)
    values = codes * np.repeat(scales.astype(np.float32), group, 1) + np.repeat(biases.astype(np.float32), group, 1)
    return {"weight": packed(codes, bits), "scales": scales, "biases": biases}, values.astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_a_code_times_its_scale_plus_its_bias_is_the_weight(bits: int, group: int, tmp_path: Path) -> None:
    stored, values = parts(bits, group)
    tensor = weight(tmp_path, SCHEME, stored, {"bits": bits, "group_size": group})
    np.testing.assert_array_equal(tensor.read(), values)
    assert tensor.encoding is not None
    assert_rows_agree(tensor)


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_the_settings_may_have_either_name_and_another_word_for_one_module(key: str, tmp_path: Path) -> None:
    first, second = parts(4, 64), parts(8, 32)
    tensors = {f"a.{name}": part for name, part in first[0].items()}
    tensors |= {f"b.{name}": part for name, part in second[0].items()}
    settings = {"bits": 4, "group_size": 64, "b": {"bits": 8, "group_size": 32}, "c": False}
    checkpoint = open_checkpoint(save(tmp_path, tensors, None, model={key: settings}))
    assert checkpoint.quantization == "MLX"
    for name, (_, values) in {"a": first, "b": second}.items():
        np.testing.assert_array_equal(checkpoint.tensors[f"{name}.weight"].read(), values)


REFUSED: dict[str, tuple[dict[str, Array], dict[str, Any], str]] = {
    "other bits": ({}, {"bits": 8}, "8 bits in groups of 64 do not explain"),
    "other groups": ({}, {"group_size": 32}, "4 bits in groups of 32 do not explain"),
    "a new mode": ({}, {"mode": "ternary"}, "mode 'ternary' of MLX; known are affine, mxfp4"),
    "floats with biases": ({}, {"mode": "mxfp4"}, "not the tensors that MLX writes in the mode mxfp4"),
    "experts": ({"weight": np.zeros((2, 6, 16), np.uint32)}, {}, "only matrices can be read"),
    "biases of others": ({"biases": np.zeros((6, 1), np.float16)}, {}, "not one bias for each scale"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_settings_do_not_explain_is_refused(case: str, tmp_path: Path) -> None:
    changes, stated, reason = REFUSED[case]
    refused(tmp_path, SCHEME, {**parts(4, 64)[0], **changes}, {"bits": 4, "group_size": 64, **stated}, reason)


def test_a_module_without_biases_is_refused(tmp_path: Path) -> None:
    stored = {name: part for name, part in parts(4, 64)[0].items() if name != "biases"}
    with pytest.raises(InputError, match=f"no {MODULE}.biases"):
        weight(tmp_path, SCHEME, stored, {"bits": 4, "group_size": 64})


def test_settings_without_a_name_and_without_codes_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, {"w": np.zeros((2, 2), np.float32)}, {"levels": 3})
    with pytest.raises(InputError, match="does not say by what it is quantized, which is not known"):
        open_checkpoint(folder)
