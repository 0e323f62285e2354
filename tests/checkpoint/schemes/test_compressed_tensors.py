"""compressed-tensors: what the library decodes its own files to is read bit for bit; contradictions are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.checkpoint.schemes.stored import (
    DATA,
    MODULE,
    Array,
    assert_rows_agree,
    float4,
    float8,
    opened,
    refused,
    resolved,
    weight,
)
from truecast.checkpoint.bits import unpack
from truecast.checkpoint.encoding import Affine, Codebook
from truecast.checkpoint.schemes.compressed_tensors import SCHEME

SLOW_DISK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize(
    ("name", "module", "words"),
    [
        ("compressed-tensors-integers", "self_attn.q_proj", "compressed-tensors 4-bit, group 32, asymmetric"),
        ("compressed-tensors-integers", "self_attn.k_proj", "compressed-tensors 4-bit, per channel"),
        ("compressed-tensors-integers", "self_attn.v_proj", "compressed-tensors 2-bit, group 16"),
        ("compressed-tensors-integers", "self_attn.o_proj", "compressed-tensors 3-bit, group 32, asymmetric"),
        ("compressed-tensors-integers", "mlp.up_proj", "compressed-tensors 8-bit, per channel"),
        ("compressed-tensors-floats", "self_attn.q_proj", "compressed-tensors NVFP4, group 16"),
        ("compressed-tensors-floats", "self_attn.k_proj", "compressed-tensors MXFP4, group 32"),
        ("compressed-tensors-floats", "self_attn.v_proj", "compressed-tensors MXFP6, group 32"),
        ("compressed-tensors-floats", "self_attn.o_proj", "compressed-tensors FP8 E4M3, group 32"),
        ("compressed-tensors-floats", "mlp.gate_proj", "compressed-tensors FP8 E4M3, per tensor"),
        ("compressed-tensors-blocks", "mlp.up_proj", "compressed-tensors FP8 E4M3, 128x128 blocks"),
    ],
)
def test_the_user_is_told_how_a_weight_is_stored(name: str, module: str, words: str) -> None:
    assert opened(DATA / name, SCHEME).tensors[f"model.layers.0.{module}.weight"].stored_as == words


def test_symmetric_codes_are_the_stored_bytes_and_carry_no_zero_points() -> None:
    tensor = opened(DATA / "auto-round-ct-int4", SCHEME).tensors[f"{MODULE}.weight"]
    encoding = tensor.encoding
    assert isinstance(encoding, Affine)
    assert (encoding.bits, encoding.group, encoding.zero, encoding.order) == (4, 32, 8, None)
    assert encoding.scales[0].dtype == np.float16
    packed = next(part for part in tensor.parts if part.name.endswith("weight_packed"))
    np.testing.assert_array_equal(encoding.codes(3, 9), packed.rows(3, 9).view(np.uint8))


def test_scales_of_activations_are_left_out_with_a_reason() -> None:
    resolved = opened(DATA / "auto-round-ct-fp8", SCHEME)
    assert "activations" in resolved.ignored[f"{MODULE}.input_scale"]
    assert not any(name.endswith("input_scale") for name in resolved.tensors)


# Layouts that the library no longer writes, and contradictions, are written by hand.


def stream(codes: Array, bits: int) -> Array:
    """int32 words of each row: one long integer, code i at bit i · bits, cut into words."""
    words = -(-codes.shape[1] * bits // 32)
    rows = [sum(int(code) << place * bits for place, code in enumerate(row)) for row in codes]
    return np.array([list(row.to_bytes(4 * words, "little")) for row in rows], np.uint8).view("<i4")


def wasteful(codes: Array, bits: int) -> Array:
    """int32 words of each row, each with as many whole codes as fit."""
    per_word = 32 // bits
    return np.concatenate(
        [stream(codes[:, i : i + per_word], bits) for i in range(0, codes.shape[1], per_word)], axis=1
    )


def module(codes: Array, bits: int, group: int, **parts: Array) -> dict[str, Array]:
    """The parts of a packed module; all scales are powers of two, so that products are exact."""
    rows, width = codes.shape
    generator = np.random.default_rng(width)
    scale = 2.0 ** generator.integers(-6, 3, (rows, -(-width // group)))
    return {
        "weight_packed": stream(codes, bits),
        "weight_scale": scale.astype(np.float16),
        "weight_shape": np.array([rows, width]),
        **parts,
    }


def stated(bits: int = 4, group: int | None = 32, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "group_size": group, "type": "int"}
    group_0 = {"targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group_0}, **more}


def expected(codes: Array, scale: Array, zero: Array | int, groups: Array) -> Array:
    """(code - zero) · scale, with the group of each column."""
    zeros = zero if isinstance(zero, int) else zero.astype(np.float32)[:, groups]
    return (codes.astype(np.float32) - np.float32(zeros)) * scale.astype(np.float32)[:, groups]


@SLOW_DISK
@given(
    bits=st.integers(1, 8),
    group=st.sampled_from([16, 24, 32, 40]),
    groups=st.integers(1, 3),
    cut=st.integers(0, 7),
    rows=st.integers(2, 70),
    kind=st.sampled_from(["symmetric", "packed", "signed"]),
    seed=st.integers(0, 99),
)
def test_codes_of_any_width_and_shape_are_read(
    tmp_path: Path, bits: int, group: int, groups: int, cut: int, rows: int, kind: str, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    width, middle = group * groups - cut, 1 << bits - 1
    assume(32 % bits == 0 or width <= 32 // bits or -(-width * bits // 32) != -(-width // (32 // bits)))
    codes = generator.integers(0, 1 << bits, (rows, width), np.uint8)
    zero = generator.integers(0, 1 << bits, (rows, groups), np.uint8)
    parts = module(codes, bits, group)
    if kind == "packed":
        parts["weight_zero_point"] = stream(zero.T, bits).T
    if kind == "signed":
        parts["weight_zero_point"] = (zero.astype(np.int16) - middle).astype(np.int8)
    tensor = weight(tmp_path, SCHEME, parts, stated(bits, group))
    used = middle if kind == "symmetric" else zero
    wanted = expected(codes, parts["weight_scale"], used, np.arange(width) // group)
    np.testing.assert_array_equal(tensor.read(), wanted)
    assert_rows_agree(tensor)


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_words_that_waste_bits_are_told_apart_by_their_number(tmp_path: Path, bits: int) -> None:
    generator = np.random.default_rng(bits)
    codes = generator.integers(0, 1 << bits, (45, 64), np.uint8)
    zero = generator.integers(0, 1 << bits, (45, 2), np.uint8)
    parts = module(codes, bits, 32, weight_packed=wasteful(codes, bits), weight_zero_point=wasteful(zero.T, bits).T)
    tensor = weight(tmp_path, SCHEME, parts, stated(bits))
    np.testing.assert_array_equal(tensor.read(), expected(codes, parts["weight_scale"], zero, np.arange(64) // 32))
    assert_rows_agree(tensor)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_columns_in_the_order_of_their_groups(tmp_path: Path, bits: int) -> None:
    generator = np.random.default_rng(bits)
    codes = generator.integers(0, 1 << bits, (50, 96), np.uint8)
    groups = generator.permutation(np.repeat(np.arange(3), 32)).astype(np.int32)
    parts = module(codes, bits, 32, weight_g_idx=groups)
    tensor = weight(tmp_path, SCHEME, parts, stated(bits))
    assert tensor.stored_as.endswith("act-order")
    np.testing.assert_array_equal(tensor.read(), expected(codes, parts["weight_scale"], 1 << bits - 1, groups))
    assert_rows_agree(tensor)
    encoding = tensor.encoding
    assert isinstance(encoding, Affine)
    slots = unpack(encoding.codes(0, 50), encoding.bits, 96)
    np.testing.assert_array_equal(slots, codes[:, np.argsort(groups, kind="stable")])


@pytest.mark.parametrize("g_idx", [np.full(64, -1), np.arange(64) // 32])
def test_an_order_that_changes_nothing_is_none(tmp_path: Path, g_idx: Array) -> None:
    codes = np.random.default_rng(0).integers(0, 16, (8, 64), np.uint8)
    encoding = weight(tmp_path, SCHEME, module(codes, 4, 32, weight_g_idx=g_idx.astype(np.int32)), stated()).encoding
    assert isinstance(encoding, Affine)
    assert encoding.order is None


def test_a_scale_of_zero_gives_zeros(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 16, (8, 64), np.uint8)
    parts = module(codes, 4, 32, weight_scale=np.zeros((8, 2), np.float16))
    np.testing.assert_array_equal(weight(tmp_path, SCHEME, parts, stated()).read(), 0)


def test_the_tensors_decide_between_the_widths_that_config_json_names(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (8, 64), np.uint8)
    quantization = stated(4, 32)
    quantization["config_groups"]["group_1"] = {"targets": ["re:.*down"], "weights": {"num_bits": 8}}
    encoding = weight(tmp_path, SCHEME, module(codes, 8, 64), quantization).encoding
    assert isinstance(encoding, Affine)
    assert (encoding.bits, encoding.group) == (8, 64)


def test_an_older_key_of_config_json_is_read(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 16, (8, 60), np.uint8)
    quantization = {"quant_method": "compressed-tensors", "quantization_config": stated(4, 24)}
    encoding = weight(tmp_path, SCHEME, module(codes, 4, 24), quantization).encoding
    assert isinstance(encoding, Affine)
    assert encoding.group == 24


def test_nvfp4_divides_by_the_global_scale_in_float32(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    scale = float8(generator, (4, 4))
    divisor = np.array([1234.567], np.float32)
    packed = generator.integers(0, 256, (4, 32), np.uint8)
    parts = {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": divisor}
    tensor = weight(tmp_path, SCHEME, parts, stated())
    assert isinstance(tensor.encoding, Codebook)
    wanted = float4(packed) * np.repeat(scale.astype(np.float32) / divisor, 16, axis=1)
    np.testing.assert_array_equal(tensor.read(), wanted)


CODES = np.random.default_rng(1).integers(0, 16, (8, 64), np.uint8)


@pytest.mark.parametrize(
    ("changed", "quantization", "why"),
    [
        ({"weight_shape": np.array([8, 72])}, stated(), "packs 72 codes into 8 words"),
        ({"weight_shape": np.array([9, 64])}, stated(), "weight_shape says [9, 64]"),
        ({}, stated(bits=8), "config.json states 8"),
        ({}, stated(group=16), "has 8x2 scales"),
        ({"weight_scale": np.ones((8, 3), np.float16)}, stated(), "has 8x3 scales"),
        ({"weight_scale": np.ones((8, 2), np.int64)}, stated(), "no type of scales"),
        ({"weight_zero_point": np.zeros((8, 2), np.int32)}, stated(), "weight_zero_point of shape [8, 2]"),
        (
            {"weight_g_idx": np.zeros(64, np.int32)},
            stated(),
            "weight_g_idx that does not divide 64 columns into 2 groups of 32",
        ),
        ({"scale_packed": np.zeros((2, 8), np.float16)}, stated(), "2:4 sparse format"),
        ({}, stated(format="marlin-24"), "2:4 sparse format"),
        ({}, stated(format="pack-quantized-v9"), "'pack-quantized-v9', which is not known"),
        (
            {},
            stated(transform_config={"config_groups": {"u": {"apply": [{"location": "input"}]}}}),
            "transforms values as the model runs",
        ),
    ],
)
def test_a_contradiction_is_refused(
    tmp_path: Path, changed: Mapping[str, Array], quantization: Mapping[str, Any], why: str
) -> None:
    refused(tmp_path, SCHEME, {**module(CODES, 4, 32), **changed}, quantization, why)


@pytest.mark.parametrize("missing", ["weight_scale", "weight_shape"])
def test_a_missing_part_is_refused(tmp_path: Path, missing: str) -> None:
    parts = module(CODES, 4, 32)
    del parts[missing]
    refused(tmp_path, SCHEME, parts, stated(), f"no {MODULE}.{missing}")


def test_a_choice_that_nothing_decides_is_refused(tmp_path: Path) -> None:
    """16 codes of 3 bits take two words in either layout."""
    codes = np.random.default_rng(1).integers(0, 8, (8, 16), np.uint8)
    refused(tmp_path, SCHEME, module(codes, 3, 16), stated(3, 16), "fits codes of these bits: 3, 3")


def test_two_stated_group_sizes_that_both_fit_are_refused(tmp_path: Path) -> None:
    """56 columns are two groups of 32, the last of them shorter, and two groups of 40."""
    quantization = stated(4, 32)
    quantization["config_groups"]["group_1"] = {"targets": ["re:.*down"], "weights": {"num_bits": 4, "group_size": 40}}
    parts = module(np.ones((8, 56), np.uint8), 4, 32)
    refused(tmp_path, SCHEME, parts, quantization, "which fits no single block shape (1x32 or 1x40)")


def test_transforms_that_are_part_of_the_weights_are_read(tmp_path: Path) -> None:
    transforms = {"config_groups": {"v": {"apply": [{"location": "weight_output"}]}}}
    assert weight(tmp_path, SCHEME, module(CODES, 4, 32), stated(transform_config=transforms)).encoding is not None


def test_floats_that_were_never_compressed_are_refused(tmp_path: Path) -> None:
    parts = {"weight": np.ones((8, 64), np.float32), "weight_scale": np.ones((8, 1), np.float32)}
    refused(tmp_path, SCHEME, parts, stated(), "never compressed")


def test_three_dimensions_are_refused(tmp_path: Path) -> None:
    parts = {"weight_packed": np.zeros((2, 8, 32), np.uint8), "weight_scale": np.zeros((2, 8, 2), np.uint8)}
    refused(tmp_path, SCHEME, parts, stated(), "only matrices can be read")


def test_scales_of_the_cache_are_left_out(tmp_path: Path) -> None:
    found = resolved(tmp_path, SCHEME, {"k_scale": np.ones(1, np.float32)}, stated())
    assert "cache" in found.ignored[f"{MODULE}.k_scale"]
    assert not found.tensors


def test_a_float_weight_beside_a_scale_of_the_cache_stays_as_it_is(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float16)
    found = resolved(tmp_path, SCHEME, {"weight": stored, "k_scale": np.ones(1, np.float32)}, stated())
    assert set(found.ignored) == {f"{MODULE}.k_scale"}
    np.testing.assert_array_equal(found.tensors[f"{MODULE}.weight"].read(), stored)


def test_codes_without_their_scale_are_refused_even_beside_a_scale_of_the_cache(tmp_path: Path) -> None:
    parts = {"weight": np.ones((4, 8), np.int8), "k_scale": np.ones(1, np.float32)}
    refused(tmp_path, SCHEME, parts, stated(), f"no {MODULE}.weight_scale")
