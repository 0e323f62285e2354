"""AMD Quark: what the library decodes its own checkpoints to is read bit for bit; contradictions are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoint.schemes.stored import DATA, Array, assert_rows_agree, opened, refused, weight
from truecast.checkpoint.encoding import Affine
from truecast.checkpoint.schemes.quark import SCHEME

INTERLEAVED = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns each nibble of a word holds, from the lowest."""


@pytest.mark.parametrize("module", ["self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj"])
def test_symmetric_integers_have_one_zero_point(module: str) -> None:
    encoding = opened(DATA / "quark-int4", SCHEME).tensors[f"model.layers.0.{module}.weight"].encoding
    assert isinstance(encoding, Affine)
    assert encoding.zero == encoding.middle


def words(codes: Array, places: tuple[int, ...]) -> Array:
    """Codes [m, n] as int32 [m, ceil(n / 8)]: column places[i] of each eight at bits 4 · i."""
    filled = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 8))).astype(np.uint32)
    eights = filled.reshape(len(codes), -1, 8)[..., places]
    packed: Array = (eights << np.arange(0, 32, 4, dtype=np.uint32)).sum(axis=-1, dtype=np.uint32)
    return packed.view(np.int32)


def stated(dtype: str, method: str = "reorder", **more: Any) -> dict[str, Any]:
    weights = {"dtype": dtype, "qscheme": "per_group", **more}
    return {"quant_method": "quark", "global_quant_config": {"weight": weights}, "export": {"pack_method": method}}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(2, 40),
    group=st.integers(1, 40),
    groups=st.integers(1, 3),
    signed=st.booleans(),
    method=st.sampled_from(["reorder", "order"]),
)
def test_4_bit_integers_of_any_shape_are_read(
    tmp_path: Path, rows: int, group: int, groups: int, signed: bool, method: str
) -> None:
    generator = np.random.default_rng(rows * group)
    low = -8 if signed else 0
    codes = generator.integers(low, low + 16, (rows, group * groups))
    zero = generator.integers(low, low + 16, (rows, groups))
    scale = generator.random((rows, groups)).astype(np.float32)
    places = INTERLEAVED if method == "reorder" else tuple(range(8))
    parts = {
        "weight": words(codes.T & 15, places),
        "weight_scale": scale.T,
        "weight_zero_point": words(zero.T & 15, places),
    }
    tensor = weight(tmp_path, SCHEME, parts, stated("int4" if signed else "uint4", method))
    wanted = (codes - np.repeat(zero, group, axis=1)).astype(np.float32) * np.repeat(scale, group, axis=1)
    np.testing.assert_array_equal(tensor.read(), wanted)
    assert_rows_agree(tensor)


def int4(**changed: Array) -> dict[str, Array]:
    codes = np.random.default_rng(0).integers(0, 16, (64, 16))
    return {"weight": words(codes, INTERLEAVED), "weight_scale": np.ones((2, 16), np.float16), **changed}


def test_without_zero_points_the_zero_is_the_code_zero(tmp_path: Path) -> None:
    for dtype, zero in (("int4", 8), ("uint4", 0)):
        encoding = weight(tmp_path, SCHEME, int4(), stated(dtype)).encoding
        assert isinstance(encoding, Affine)
        assert encoding.zero == zero


@pytest.mark.parametrize(("dtype", "stored", "zero"), [("int4", -3, 5), ("int4", 2, 10), ("uint4", 3, 3)])
def test_equal_zero_points_are_one_number(tmp_path: Path, dtype: str, stored: int, zero: int) -> None:
    points = words(np.full((2, 16), stored & 15), INTERLEAVED)
    encoding = weight(tmp_path, SCHEME, int4(weight_zero_point=points), stated(dtype)).encoding
    assert isinstance(encoding, Affine)
    assert encoding.zero == zero


def test_a_block_has_the_stated_shape(tmp_path: Path) -> None:
    codes = np.ones((48, 64), ml_dtypes.float8_e4m3fn)
    scale = np.arange(6, dtype=np.float32).reshape(3, 2)
    parts = {"weight": codes, "weight_scale": scale}
    tensor = weight(tmp_path, SCHEME, parts, stated("fp8_e4m3", block_size=[16, 32]))
    np.testing.assert_array_equal(tensor.read(), np.kron(scale, np.ones((16, 32), np.float32)))


@pytest.mark.parametrize(
    ("parts", "quantization", "why"),
    [
        (int4(), {"quant_method": "quark"}, "may hold int4 or uint4, and config.json states no type"),
        (int4(), stated("int8"), "config.json states int8"),
        (int4(), stated("int4", method="shuffle"), "packed by 'shuffle'"),
        (int4(weight_scale=np.ones((3, 16), np.float16)), stated("int4"), "not those of integers in groups"),
        (int4(weight_scale=np.ones(16, np.float16)), stated("int4"), "not those of integers in groups"),
        (int4(weight_zero_point=np.zeros((2, 3), np.int32)), stated("int4"), "weight_zero_point of shape [2, 3]"),
        (int4(weight_zero_point=np.zeros((2, 2), np.float32)), stated("int4"), "weight_zero_point"),
        (int4(weight=np.zeros((64, 16), np.float32)), stated("int4"), "is stored as F32"),
        (int4(weight=np.zeros((64, 6), np.uint8)), stated("int3"), "may hold uint8, and config.json states int3"),
    ],
)
def test_what_the_tensors_contradict_or_leave_open_is_refused(
    tmp_path: Path, parts: dict[str, Array], quantization: dict[str, Any], why: str
) -> None:
    refused(tmp_path, SCHEME, parts, quantization, why)


def test_6_bit_floats_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    parts = {"weight": np.zeros((4, 48), np.uint8), "weight_scale": np.full((4, 2), 127, np.uint8)}
    refused(tmp_path, SCHEME, parts, stated("fp6_e3m2"), "of the kind E3M2")
    assert weight(tmp_path, SCHEME, parts, stated("fp6_e2m3")).shape == (4, 64)
