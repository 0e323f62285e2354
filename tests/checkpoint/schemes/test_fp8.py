"""Float8 with scales in blocks, rows, or one for all: read bit for bit, in any of the types that scales come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoint.schemes.stored import (
    DATA,
    MODULE,
    Array,
    assert_rows_agree,
    float8,
    opened,
    refused,
    resolved,
    weight,
)
from truecast.checkpoint.encoding import Codebook
from truecast.checkpoint.schemes.fp8 import SCHEME

BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
TYPES = [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e8m0fnu, np.uint8]


def test_the_storage_is_named() -> None:
    tensors = opened(DATA / "auto-round-fp8-blocks", SCHEME).tensors
    assert tensors["model.layers.0.mlp.up_proj.weight"].stored_as == "FP8 E4M3, 128x128 blocks"


def powers(generator: np.random.Generator, shape: tuple[int, ...], kind: Any) -> tuple[Array, Array]:
    """Scales that are powers of two, as stored in a type and as float32."""
    exponents = generator.integers(-9, 9, shape)
    values = (2.0**exponents).astype(np.float32)
    return (exponents + 127).astype(np.uint8) if kind is np.uint8 else values.astype(kind), values


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(2, 300),
    width=st.integers(1, 300),
    block=st.sampled_from([(128, 128), (64, 32), (1, 128), (48, 80)]),
    kind=st.sampled_from(TYPES),
    seed=st.integers(0, 99),
)
def test_blocks_of_any_shape_with_edges_are_read(
    tmp_path: Path, rows: int, width: int, block: tuple[int, int], kind: Any, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    codes = float8(generator, (rows, width))
    stored, scale = powers(generator, (-(-rows // block[0]), -(-width // block[1])), kind)
    quantization = {"quant_method": "fp8", "weight_block_size": list(block)}
    tensor = weight(tmp_path, SCHEME, {"weight": codes, "weight_scale_inv": stored}, quantization)
    of_each = scale[np.arange(rows)[:, None] // block[0], np.arange(width) // block[1]]
    np.testing.assert_array_equal(tensor.read(), codes.astype(np.float32) * of_each)
    assert_rows_agree(tensor)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (6,), (6, 1)])
@pytest.mark.parametrize("part", ["weight_scale", "weight_scale_inv"])
def test_one_scale_for_all_and_one_for_each_row(tmp_path: Path, shape: tuple[int, ...], part: str) -> None:
    generator = np.random.default_rng(3)
    codes = float8(generator, (6, 40))
    scale = generator.standard_normal(shape).astype(np.float32) if shape else np.array(0.37, np.float32)
    tensor = weight(tmp_path, SCHEME, {"weight": codes, part: scale}, {"quant_method": "fbgemm_fp8"})
    np.testing.assert_array_equal(tensor.read(), codes.astype(np.float32) * scale.reshape(-1, 1))
    assert tensor.stored_as == f"FP8 E4M3, {'per channel' if 6 in shape else 'per tensor'}"
    assert_rows_agree(tensor)


def test_blocks_are_128_square_where_config_json_does_not_say(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    scale = generator.standard_normal((2, 3)).astype(np.float32)
    parts = {"weight": float8(generator, (200, 300)), "weight_scale_inv": scale}
    encoding = weight(tmp_path, SCHEME, parts, {"quant_method": "fp8"}).encoding
    assert isinstance(encoding, Codebook)
    assert encoding.group == 128
    np.testing.assert_array_equal(encoding.scales[0].read(127, 129), scale)


def test_rows_have_groups_of_128_where_config_json_does_not_say(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    scale = generator.standard_normal((5, 3)).astype(np.float32)
    codes = float8(generator, (5, 300))
    tensor = weight(tmp_path, SCHEME, {"weight": codes, "weight_scale": scale}, {"quant_method": "fp8"})
    np.testing.assert_array_equal(tensor.read(), codes.astype(np.float32) * scale[:, np.arange(300) // 128])


def test_scales_stay_in_the_type_in_which_they_are_stored(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    for kind in TYPES[:-1]:
        stored, _ = powers(generator, (2, 1), kind)
        encoding = weight(
            tmp_path, SCHEME, {"weight": float8(generator, (200, 64)), "weight_scale_inv": stored}, BLOCKS
        ).encoding
        assert isinstance(encoding, Codebook)
        assert encoding.scales[0].dtype == encoding.scales[0].read(0, 9).dtype == np.dtype(kind)


def test_every_exponent_is_its_power_of_two(tmp_path: Path) -> None:
    exponents = np.arange(255, dtype=np.uint8)
    ones = np.ones((255, 1), ml_dtypes.float8_e4m3fn)
    tensor = weight(tmp_path, SCHEME, {"weight": ones, "weight_scale_inv": exponents[:, None]}, BLOCKS)
    np.testing.assert_array_equal(tensor.read()[:, 0], np.ldexp(np.float32(1), exponents.astype(np.int32) - 127))


def test_the_other_float8_is_read(tmp_path: Path) -> None:
    codes = np.array([[1.0, -57344.0], [2.0**-16, 0.0]], ml_dtypes.float8_e5m2)
    tensor = weight(tmp_path, SCHEME, {"weight": codes, "weight_scale": np.float32([2.0])}, BLOCKS)
    assert tensor.stored_as == "FP8 E5M2, per tensor"
    np.testing.assert_array_equal(tensor.read(), [[2.0, -114688.0], [2.0**-15, 0.0]])


def test_scales_of_activations_are_left_out(tmp_path: Path) -> None:
    one = np.ones(1, np.float32)
    parts = {"weight": np.ones((4, 4), ml_dtypes.float8_e4m3fn), "weight_scale_inv": one, "activation_scale": one}
    assert list(resolved(tmp_path, SCHEME, parts, BLOCKS).ignored) == [f"{MODULE}.activation_scale"]


@pytest.mark.parametrize(
    ("scales", "why"),
    [
        (
            {"weight_scale_inv": np.ones((2, 2), np.float32)},
            "has 2x2 scales in weight_scale_inv",
        ),
        ({"weight_scale_inv": np.ones((3, 2), np.float32)}, "fits no single block shape (128x128)"),
        ({"weight_scale_inv": np.ones(3, np.float32)}, "weight_scale_inv of shape [3]"),
        ({"weight_scale_inv": np.ones(1, np.int32)}, "no type of scales"),
        ({"weight_scale_inv": np.ones(1, np.float32), "weight_scale": np.ones(1, np.float32)}, "has both"),
        ({}, "nothing beside it says what its codes mean"),
    ],
)
def test_scales_that_do_not_fit_are_refused(tmp_path: Path, scales: dict[str, Array], why: str) -> None:
    parts = {"weight": np.ones((200, 300), ml_dtypes.float8_e4m3fn), **scales}
    refused(tmp_path, SCHEME, parts, BLOCKS, why)
