"""HQQ: what the library decodes its own checkpoints to is read bit for bit, for each number of bits and both axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoint.schemes.stored import DATA, Array, from_encoding, opened, oracle, written
from truecast.checkpoint.encoding import Affine
from truecast.checkpoint.schemes.hqq import SCHEME
from truecast.errors import InputError

ALONG = [(name, weight) for name in ("hqq-axis1", "hqq-axis1-group16") for weight in oracle(name)]


ULP_OF_LARGEST = 2
"""Of the largest of both terms and the weight: the terms and their sum are rounded once each, the library's difference
and product too, half an ulp each; 1 measured."""


@pytest.mark.parametrize(("name", "weight"), ALONG)
def test_the_two_terms_are_within_their_ulp_of_the_library(name: str, weight: str) -> None:
    tensor = opened(DATA / name, SCHEME).tensors[weight]
    if tensor.encoding is None:
        assert tensor.shape == (64, 112)
        return
    assert isinstance(tensor.encoding, Affine)
    exact, zero, scale = tensor.read(), *(encoded_values(tensor, place) for place in (0, 1))
    largest = np.max(np.abs([exact, zero * scale, exact - zero * scale]), axis=0)
    ulps = np.abs(from_encoding(tensor) - exact) / np.spacing(largest)
    assert ulps.max() <= ULP_OF_LARGEST


def encoded_values(tensor: Any, place: int) -> Array:
    """A factor of the offsets, one value for each weight."""
    factor = tensor.encoding.offsets[place]
    values = factor.read(0, tensor.shape[0]).astype(np.float32)
    return np.repeat(values, tensor.shape[1] // factor.columns, axis=1)


@pytest.mark.parametrize("weight", oracle("hqq-axis1"))
def test_the_two_terms_of_half_precision_scales_are_the_librarys_values(weight: str) -> None:
    tensor = opened(DATA / "hqq-axis1", SCHEME).tensors[weight]
    if tensor.encoding is not None:
        np.testing.assert_array_equal(from_encoding(tensor), tensor.read())


@pytest.mark.parametrize(
    ("linear", "words", "bits"),
    [
        ("0.self_attn.q_proj", "HQQ 4-bit, group 64, axis 1", 4),
        ("0.self_attn.k_proj", "HQQ 3-bit, group 64, axis 1", 4),
        ("0.self_attn.v_proj", "HQQ 2-bit, group 64, axis 1", 2),
        ("0.self_attn.o_proj", "HQQ 8-bit, group 64, axis 1", 8),
        ("0.mlp.gate_proj", "HQQ 1-bit, group 64, axis 1", 2),
        ("0.mlp.up_proj", "HQQ 1.58-bit, group 64, axis 1", 2),
        ("1.self_attn.v_proj", "HQQ 6-bit, group 64, axis 1", 8),
    ],
)
def test_narrow_codes_lie_in_the_next_wider_slot(linear: str, words: str, bits: int) -> None:
    tensor = opened(DATA / "hqq-axis1", SCHEME).tensors[f"model.layers.{linear}.weight"]
    assert tensor.stored_as == words
    assert isinstance(tensor.encoding, Affine)
    assert (tensor.encoding.bits, tensor.encoding.group, tensor.encoding.zero) == (bits, 64, 0)
    assert tensor.encoding.scales[0].dtype == np.float16


def test_groups_across_rows_are_decoded_and_say_so() -> None:
    tensor = opened(DATA / "hqq-axis0", SCHEME).tensors["model.layers.0.self_attn.q_proj.weight"]
    assert tensor.encoding is None
    assert tensor.stored_as == "HQQ 4-bit, group 64, axis 0, decoded: its groups run across rows"


PACKED: dict[str, tuple[int, int, Any]] = {
    "8bit_u8": (8, 1, np.uint8),
    "4bit_u8": (4, 2, np.uint8),
    "3bit_32": (3, 10, np.int32),
    "2bit_u8": (2, 4, np.uint8),
    "1bit_u8": (1, 8, np.uint8),
}


def packed(codes: Array, packing: str) -> Array:
    """The rows of the group matrix in strides, the first stride in the highest bits: one word at a time."""
    bits, count, word = PACKED[packing]
    step = -(-len(codes) // count)
    words = np.zeros((step, codes.shape[1]), word)
    for row, column in np.ndindex(*codes.shape):
        words[row % step, column] |= word(int(codes[row, column]) << bits * (count - 1 - row // step))
    return words


def letters(text: str) -> Array:
    return np.frombuffer(text.encode(), np.uint8)


def parts(
    shape: tuple[int, int], group: int, axis: int, packing: str, dtype: Any = np.float16, seed: int = 0
) -> tuple[dict[str, Array], Array]:
    """Hand-written parts of one module, and the weight they mean."""
    generator = np.random.default_rng(seed)
    count = shape[0] * shape[1] // group
    size, line = ((count, group), (count, 1)) if axis else ((group, count), (1, count))
    codes = generator.integers(0, 1 << PACKED[packing][0], size)
    scale = generator.uniform(0.01, 0.1, line).astype(dtype)
    zero = generator.uniform(-1, 1 << PACKED[packing][0], line).astype(dtype)
    weight = ((codes.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)).reshape(shape)
    stored = {
        "W_q": packed(codes, packing),
        "scale": scale,
        "zero": zero,
        "shape": np.array(shape, np.int64),
        "axis": np.array(axis, np.int32),
        "group_size": np.array(group, np.int32),
        "nbits": np.array(PACKED[packing][0], np.int32),
        "packing": letters(packing),
        "view_as_float": np.array(0, np.uint8),
        "compute_dtype": letters("torch.float16"),
    }
    return {f"p.{name}": part for name, part in stored.items()}, weight


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 12),
    width=st.sampled_from([8, 16, 24, 40, 64]),
    group=st.sampled_from([8, 16, 24, 64]),
    axis=st.integers(0, 1),
    packing=st.sampled_from(sorted(PACKED)),
)
def test_any_shape_is_decoded_element_by_element(
    rows: int, width: int, group: int, axis: int, packing: str, tmp_path: Path
) -> None:
    group_rows = rows * width // group if axis else group
    if rows * width % group or (packing != "3bit_32" and group_rows % PACKED[packing][1]):
        return
    stored, weight = parts((rows, width), group, axis, packing, seed=rows * width)
    tensor = written(tmp_path, SCHEME, stored)["p.weight"]
    np.testing.assert_array_equal(tensor.read(), weight)
    for row in range(rows):
        np.testing.assert_array_equal(tensor.rows(row, row + 1), weight[row : row + 1])
    assert (tensor.encoding is None) == (axis == 0 or width % group != 0)
    if tensor.encoding is not None:
        np.testing.assert_allclose(from_encoding(tensor), weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("view", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_codes_viewed_as_floats_are_the_same_bytes(view: Any, tmp_path: Path) -> None:
    stored, weight = parts((6, 64), 16, 1, "4bit_u8")
    stored["p.W_q"] = stored["p.W_q"].view(view)
    np.testing.assert_array_equal(written(tmp_path, SCHEME, stored)["p.weight"].read(), weight)


@pytest.mark.parametrize("axis", [0, 1])
def test_zero_points_and_scales_that_were_stacked_for_offloading(axis: int, tmp_path: Path) -> None:
    stored, weight = parts((6, 64), 16, axis, "4bit_u8")
    stored["p.zero_scale"] = np.stack([stored.pop("p.zero"), stored.pop("p.scale")])
    tensor = written(tmp_path, SCHEME, stored)["p.weight"]
    np.testing.assert_array_equal(tensor.read(), weight)
    np.testing.assert_array_equal(tensor.rows(2, 3), weight[2:3])


BROKEN: dict[str, tuple[dict[str, Array | None], str]] = {
    "no scale": ({"scale": None}, "no p.scale"),
    "no shape": ({"shape": None}, "no p.shape"),
    "no packing": ({"packing": None}, "no p.packing"),
    "codes cut off": ({"W_q": np.zeros((11, 16), np.uint8)}, "176 bytes in W_q .* takes 192"),
    "scale of other groups": ({"scale": np.ones((12, 1), np.float16)}, "12 F16 values in p.scale where 24"),
    "zero points in integers": ({"zero": np.ones((24, 1), np.uint8)}, "24 U8 values in p.zero"),
    "quantized zero points": ({"zero_q": np.ones((24, 1), np.uint8)}, "quantized themselves"),
    "unknown packing": ({"packing": letters("7bit_u8")}, "do not fit together"),
    "another packing": ({"packing": letters("2bit_u8")}, "192 bytes in W_q"),
    "axis 2": ({"axis": np.array(2, np.int32)}, "axis .2."),
    "no group": ({"group_size": np.array(0, np.int32)}, "do not fit together"),
    "group that does not divide": ({"group_size": np.array(17, np.int32)}, "do not fit together"),
    "three dimensions": ({"shape": np.array([2, 3, 64], np.int64)}, "do not fit together"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_parts_that_contradict_each_other_are_refused(case: str, tmp_path: Path) -> None:
    changes, reason = BROKEN[case]
    stored: dict[str, Any] = parts((6, 64), 16, 1, "4bit_u8")[0] | {f"p.{key}": part for key, part in changes.items()}
    with pytest.raises(InputError, match=reason) as caught:
        written(tmp_path, SCHEME, {key: part for key, part in stored.items() if part is not None})
    assert str(tmp_path) in str(caught.value)


def test_a_bias_stays_as_it_is(tmp_path: Path) -> None:
    bias = np.arange(6, dtype=np.float16)
    tensors = written(tmp_path, SCHEME, parts((6, 64), 16, 1, "4bit_u8")[0] | {"p.bias": bias})
    assert sorted(tensors) == ["p.bias", "p.weight"]
    np.testing.assert_array_equal(tensors["p.bias"].read(), bias)
