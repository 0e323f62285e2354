"""NVIDIA Model Optimizer: NVFP4, whose second scale is multiplied, and float8; other kinds are refused."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.checkpoint.schemes.stored import MODULE, Array, assert_rows_agree, float4, float8, refused, resolved, weight
from truecast.checkpoint.encoding import Codebook
from truecast.checkpoint.schemes.modelopt import SCHEME

METHOD = {"quant_method": "modelopt"}
ONE = np.ones(1, np.float32)


def nvfp4(rows: int = 6, groups: int = 5) -> dict[str, Array]:
    generator = np.random.default_rng(rows)
    return {
        "weight": generator.integers(0, 256, (rows, groups * 8), np.uint8),
        "weight_scale": float8(generator, (rows, groups)),
        "weight_scale_2": np.array(0.000731, np.float32),
        "input_scale": np.array(0.01, np.float32),
    }


@pytest.mark.parametrize("quantization", [METHOD, None])
@pytest.mark.parametrize("groups", [1, 5])
def test_nvfp4_multiplies_both_scales(tmp_path: Path, quantization: dict[str, str] | None, groups: int) -> None:
    parts = nvfp4(groups=groups)
    tensor = weight(tmp_path, SCHEME, parts, quantization)
    scale = parts["weight_scale"].astype(np.float32) * parts["weight_scale_2"]
    np.testing.assert_array_equal(tensor.read(), float4(parts["weight"]) * np.repeat(scale, 16, axis=1))
    assert_rows_agree(tensor)
    assert tensor.stored_as == "ModelOpt NVFP4, group 16"


def test_both_scales_stay_as_small_as_they_are_stored(tmp_path: Path) -> None:
    encoding = weight(tmp_path, SCHEME, nvfp4(), METHOD).encoding
    assert isinstance(encoding, Codebook)
    assert [factor.dtype for factor in encoding.scales] == [ml_dtypes.float8_e4m3fn, np.float32]
    assert [factor.columns for factor in encoding.scales] == [5, 1]


@pytest.mark.parametrize("shape", [(), (6,)])
def test_float8_has_one_scale_or_one_for_each_row(tmp_path: Path, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(1)
    scale = np.asarray(generator.random(shape), np.float32)
    codes = float8(generator, (6, 24))
    tensor = weight(tmp_path, SCHEME, {"weight": codes, "weight_scale": scale}, METHOD)
    np.testing.assert_array_equal(tensor.read(), codes.astype(np.float32) * scale.reshape(-1, 1))
    assert_rows_agree(tensor)


def test_mxfp8_has_exponents_for_groups_of_32(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    exponents = generator.integers(120, 130, (6, 2), np.uint8)
    codes = float8(generator, (6, 64))
    tensor = weight(tmp_path, SCHEME, {"weight": codes, "weight_scale": exponents}, METHOD)
    scale = np.repeat(2.0 ** (exponents.astype(np.float32) - 127), 32, axis=1)
    np.testing.assert_array_equal(tensor.read(), codes.astype(np.float32) * scale)


def test_scales_of_activations_and_cache_are_left_out(tmp_path: Path) -> None:
    found = resolved(tmp_path, SCHEME, {**nvfp4(), "k_scale": ONE}, METHOD)
    assert set(found.ignored) == {f"{MODULE}.input_scale", f"{MODULE}.k_scale"}
    assert set(found.tensors) == {f"{MODULE}.weight"}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"pre_quant_scale": ONE}, "by which its activations are multiplied"),
        ({"weight_scale_2": np.ones(6, np.float32)}, "weight_scale_2 of shape [6], and one number is expected"),
        ({"weight_scale": np.ones((6, 4), ml_dtypes.float8_e4m3fn)}, "has 6x4 scales"),
        ({"weight_scale": np.ones((6, 5), np.float32)}, "only NVFP4"),
    ],
)
def test_a_contradiction_is_refused(tmp_path: Path, changed: dict[str, Array], why: str) -> None:
    refused(tmp_path, SCHEME, {**nvfp4(), **changed}, METHOD, why)


def test_a_missing_second_scale_is_refused(tmp_path: Path) -> None:
    parts = nvfp4()
    del parts["weight_scale_2"]
    refused(tmp_path, SCHEME, parts, METHOD, f"no {MODULE}.weight_scale_2")
