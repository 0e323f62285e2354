"""torchao: what its tensor classes decode to is read bit for bit; what no weight can hold is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoint.schemes.stored import DATA, Array, assert_rows_agree, from_encoding, opened, written
from truecast.checkpoint.encoding import Affine, Codebook
from truecast.checkpoint.schemes import torchao
from truecast.checkpoint.schemes.torchao import SCHEME
from truecast.errors import InputError


@pytest.mark.parametrize(
    ("name", "linear", "words", "bits", "group", "symmetric"),
    [
        ("torchao-int8", "1.self_attn.q_proj", "torchao int8, per channel", 8, 64, True),
        ("torchao-int8", "0.self_attn.q_proj", "torchao int8, group 32", 8, 32, True),
        ("torchao-int8", "0.mlp.down_proj", "torchao int8, per tensor", 8, 128, True),
        ("torchao-intx", "0.self_attn.q_proj", "torchao int4, group 32", 4, 32, True),
        ("torchao-intx", "0.self_attn.k_proj", "torchao int3, group 32", 4, 32, False),
        ("torchao-intx", "0.self_attn.v_proj", "torchao int2, group 16", 2, 16, False),
        ("torchao-intx", "0.self_attn.o_proj", "torchao int1, group 32", 2, 32, False),
        ("torchao-intx", "0.mlp.gate_proj", "torchao int5, per channel", 8, 64, False),
        ("torchao-intx", "0.mlp.up_proj", "torchao int6, per channel", 8, 64, False),
        ("torchao-intx", "0.mlp.down_proj", "torchao int7, group 32", 8, 32, False),
        ("torchao-intx", "1.mlp.down_proj", "torchao int8, per channel", 8, 128, True),
    ],
)
def test_integers_keep_their_bits_and_groups(
    name: str, linear: str, words: str, bits: int, group: int, symmetric: bool
) -> None:
    tensor = opened(DATA / name, SCHEME).tensors[f"model.layers.{linear}.weight"]
    encoding = tensor.encoding
    assert tensor.stored_as == words
    assert isinstance(encoding, Affine)
    assert (encoding.bits, encoding.group, encoding.zero == encoding.middle) == (bits, group, symmetric)


def test_floats_of_8_bits_become_a_table_of_all_of_them() -> None:
    tensor = opened(DATA / "torchao-float8", SCHEME).tensors["model.layers.0.mlp.down_proj.weight"]
    assert tensor.stored_as == "torchao FP8 E4M3, per channel"
    assert isinstance(tensor.encoding, Codebook)
    assert (tensor.encoding.bits, tensor.encoding.group) == (8, 128)
    assert tensor.encoding.table[[0x38, 0x7E, 0xB8]].tolist() == [1.0, 448.0, -1.0]


def header(kind: str, **attributes: Any) -> dict[str, str]:
    return {"p.weight": json.dumps({"_type": kind, "_data": attributes}), "tensor_names": '["p.weight"]'}


def target(bits: int) -> dict[str, str]:
    return {"_type": "torch.dtype", "_data": f"int{bits}"}


def parts(**stored: Array) -> dict[str, Array]:
    return {f"p._weight_{name}": part for name, part in stored.items()}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bits=st.integers(1, 8),
    rows=st.integers(1, 6),
    groups=st.integers(1, 4),
    group=st.sampled_from([1, 3, 8, 32]),
    zero=st.sampled_from(["none", "zeros", "integers", "floats"]),
    dtype=st.sampled_from([np.float16, np.float32, ml_dtypes.bfloat16]),
)
def test_any_integers_are_decoded_element_by_element(
    bits: int, rows: int, groups: int, group: int, zero: str, dtype: Any, tmp_path: Path
) -> None:
    generator = np.random.default_rng(bits * 100 + rows * groups)
    lowest, highest = -(1 << bits) // 2, (1 << bits) // 2
    codes = generator.integers(lowest, highest, (rows, groups * group)).astype(np.int8)
    scale = generator.uniform(0.01, 1, (rows, groups)).astype(dtype)
    zeros = {
        "none": None,
        "zeros": np.zeros((rows, groups), np.int8),
        "integers": generator.integers(lowest, highest, (rows, groups)).astype(np.int8),
        "floats": generator.uniform(lowest, highest, (rows, groups)).astype(dtype),
    }[zero]
    expected = codes.astype(np.float32)
    for row, column in np.ndindex(*codes.shape):
        shift = np.float32(0) if zeros is None else zeros[row, column // group].astype(np.float32)
        expected[row, column] = (expected[row, column] - shift) * scale[row, column // group].astype(np.float32)
    stored = parts(qdata=codes, scale=scale, **({} if zeros is None else {"zero_point": zeros}))
    metadata = header("IntxUnpackedToInt8Tensor", target_dtype=target(bits), block_size=[1, group])
    tensor = written(tmp_path, SCHEME, stored, metadata)["p.weight"]
    np.testing.assert_array_equal(tensor.read(), expected)
    np.testing.assert_allclose(from_encoding(tensor), expected, rtol=0, atol=2 * np.spacing(np.float32(128)))


def test_zero_points_too_large_to_look_at_are_read_with_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truecast.checkpoint.schemes.torchao.GLANCE_BYTES", 3)
    codes, scale = np.arange(-8, 8, dtype=np.int8).reshape(2, 8), np.ones((2, 2), np.float32)
    stored = parts(qdata=codes, scale=scale, zero_point=np.zeros((2, 2), np.int8))
    tensor = written(tmp_path, SCHEME, stored, header("Int8Tensor", block_size=[1, 4]))["p.weight"]
    assert not isinstance(tensor.encoding.zero, int)
    assert tensor.encoding.zero(0, 2).tolist() == [[128, 128], [128, 128]]
    np.testing.assert_array_equal(tensor.read(), codes.astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "code", "value"), [(ml_dtypes.float8_e5m2, 0x3C, 1.0), (ml_dtypes.float8_e4m3fn, 0x38, 1.0)]
)
def test_floats_of_8_bits_in_blocks_of_rows(dtype: Any, code: int, value: float, tmp_path: Path) -> None:
    codes = np.full((4, 6), code, np.uint8).view(dtype)
    scale = np.array([[1.5, 2.5, 3.5], [4.5, 5.5, 6.5]], np.float32)
    metadata = header("Float8Tensor", block_size=[2, 2])
    tensor = written(tmp_path, SCHEME, parts(qdata=codes, scale=scale), metadata)["p.weight"]
    np.testing.assert_array_equal(tensor.read(), value * np.kron(scale, np.ones((2, 2), np.float32)))
    assert_rows_agree(tensor)


def nibbles(codes: Array) -> Array:
    """Two codes a byte, the first in the low bits: one byte at a time."""
    pairs = codes.reshape(codes.shape[0], -1, 2).tolist()
    return np.array([[low % 16 + high % 16 * 16 for low, high in row] for row in pairs], np.uint8)


def int4_parts(signed: bool, zero: Array) -> tuple[dict[str, Array], Array]:
    """Codes [6, 32] in groups of 16, with scales [2, 6] as both classes store them, and the codes."""
    generator = np.random.default_rng(5)
    codes = generator.integers(-8 if signed else 0, 8 if signed else 16, (6, 32))
    packed = nibbles(codes)
    scale = generator.uniform(0.1, 1, (2, 6)).astype(np.float16)
    return parts(qdata=packed.view(np.int8 if signed else np.int32), scale=scale, zero_point=zero), codes


def test_int4_of_plain_words_is_unsigned_with_integer_zero_points(tmp_path: Path) -> None:
    zero = np.arange(12, dtype=np.int8).reshape(2, 6)
    stored, codes = int4_parts(signed=False, zero=zero)
    metadata = header("Int4PlainInt32Tensor", block_size=[1, 16], shape=[6, 32])
    tensor = written(tmp_path, SCHEME, stored, metadata)["p.weight"]
    zeros, scales = (np.repeat(part.T, 16, axis=1).astype(np.float32) for part in (zero, stored["p._weight_scale"]))
    np.testing.assert_array_equal(tensor.read(), (codes - zeros) * scales)
    np.testing.assert_array_equal(tensor.encoding.codes(0, 6), stored["p._weight_qdata"].view(np.uint8))
    assert_rows_agree(tensor)


@pytest.mark.parametrize("symmetric", [True, False])
def test_int4_is_signed_with_a_float_added(symmetric: bool, tmp_path: Path) -> None:
    zero = np.zeros((2, 6), np.float16) if symmetric else np.linspace(-1, 1, 12).reshape(2, 6).astype(np.float16)
    stored, codes = int4_parts(signed=True, zero=zero)
    metadata = header("Int4Tensor", block_size=[1, 16], shape=[6, 32])
    tensor = written(tmp_path, SCHEME, stored, metadata)["p.weight"]
    zeros, scales = (np.repeat(part.T, 16, axis=1).astype(np.float32) for part in (zero, stored["p._weight_scale"]))
    np.testing.assert_array_equal(tensor.read(), codes * scales + zeros)
    assert bool(tensor.encoding.offsets) == (not symmetric)
    assert_rows_agree(tensor)


def test_the_last_group_of_int4_may_be_shorter(tmp_path: Path) -> None:
    codes = np.arange(-8, 4).reshape(1, 12)
    scale, zero = np.array([[1.0], [10.0]], np.float16), np.array([[0.5], [0.25]], np.float16)
    stored = parts(qdata=nibbles(codes).view(np.int8), scale=scale, zero_point=zero)
    tensor = written(tmp_path, SCHEME, stored, header("Int4Tensor", block_size=[1, 8], shape=[1, 12]))["p.weight"]
    expected = [*(codes[0, :8] + 0.5), *(codes[0, 8:] * 10 + 0.25)]
    assert tensor.read().tolist() == [expected]


def small(**changes: Array) -> dict[str, Array]:
    """Parts of a weight [2, 8] in groups of 4."""
    stored = {"qdata": np.zeros((2, 8), np.int8), "scale": np.ones((2, 2), np.float32)} | changes
    return parts(**stored)


def int4_small(word: type, zero: Array | None = None) -> dict[str, Array]:
    """Parts of an int4 weight [2, 8] in one group."""
    zero = np.ones((1, 2), np.float16) if zero is None else zero
    return parts(qdata=np.zeros((2, 4), np.int8).view(word), scale=np.ones((1, 2), np.float16), zero_point=zero)


INTX4 = {"target_dtype": target(4), "block_size": [1, 4]}
BROKEN: dict[str, tuple[dict[str, Array], dict[str, str], str]] = {
    "no header": (small(), {}, "does not name its class"),
    "header not JSON": (small(), {"p.weight": "{"}, "cannot be read"),
    "header a list": (small(), {"p.weight": "[1]"}, "cannot be read"),
    "header without class": (small(), {"p.weight": "{}"}, "cannot be read"),
    "class a number": (small(), {"p.weight": '{"_type": 3}'}, "without class"),
    "tiles": (small(), header("Int4TilePackedTo4dTensor"), "torchao Int4TilePackedTo4dTensor; known are Float8Tensor"),
    "a class of a later version": (small(), header("Int9Tensor"), "torchao Int9Tensor"),
    "no scale": (parts(qdata=np.zeros((2, 8), np.int8)), header("Int8Tensor"), "no p._weight_scale"),
    "input scaled": (small(act_pre_scale=np.ones(8, np.float32)), header("Int8Tensor"), "scales its input"),
    "codes of 16 bits": (small(qdata=np.zeros((2, 8), np.int16)), header("Int8Tensor"), "type I16"),
    "codes of experts": (small(qdata=np.zeros((2, 2, 8), np.int8)), header("Int8Tensor"), r"shape \[2, 2, 8\]"),
    "groups that do not divide": (small(scale=np.ones((2, 3), np.float32)), header("Int8Tensor"), "2x3 scales"),
    "another block": (small(), header("Int8Tensor", block_size=[1, 8]), "no single block shape .1x8"),
    "a block that does not divide": (
        parts(qdata=np.zeros((2, 12), np.int8), scale=np.ones((2, 2), np.float32)),
        header("Int8Tensor", block_size=[1, 8]),
        r"blocks of \[1, 8\] of \[2, 12\]",
    ),
    "a row that is said to have groups": (
        small(scale=np.ones((2, 1), np.float32)),
        header("Int8Tensor", block_size=[1, 4]),
        r"header says \[1, 4\]",
    ),
    "another grid of zeros": (
        small(zero_point=np.ones((2, 1), np.int8)),
        header("Int8Tensor"),
        r"zero_point of shape \[2, 1\]",
    ),
    "zero points of 32 bits": (small(zero_point=np.ones((2, 2), np.int32)), header("Int8Tensor"), "type I32"),
    "unknown bits": (small(), header("IntxUnpackedToInt8Tensor", target_dtype=target(9)), "unknown type int9"),
    "no bits": (small(), header("IntxUnpackedToInt8Tensor"), "unknown type None"),
    "floats in integers": (small(), header("Float8Tensor"), "type I8"),
    "int4 of an NPU": (
        int4_small(np.int32, zero=np.ones((1, 2), np.float16)),
        header("Int4PlainInt32Tensor", block_size=[1, 8]),
        "only NPUs",
    ),
    "int4 with integers added": (
        int4_small(np.int8, zero=np.ones((1, 2), np.int8)),
        header("Int4Tensor", block_size=[1, 8]),
        "floats are added",
    ),
    "int4 without a group": (int4_small(np.int8), header("Int4Tensor"), "blocks of None"),
    "int4 in blocks of rows": (int4_small(np.int8), header("Int4Tensor", block_size=[2, 8]), r"blocks of \[2, 8\]"),
    "int4 in other groups": (
        int4_small(np.int8),
        header("Int4Tensor", block_size=[1, 4]),
        r"scale of shape \[1, 2\]",
    ),
    "int4 of another shape": (
        int4_small(np.int8),
        header("Int4Tensor", block_size=[1, 8], shape=[2, 16]),
        "header says",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_parts_that_contradict_each_other_are_refused(case: str, tmp_path: Path) -> None:
    stored, metadata, reason = BROKEN[case]
    with pytest.raises(InputError, match=reason) as caught:
        written(tmp_path, SCHEME, stored, metadata)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"qdata": np.full((2, 8), 8, np.int8)}, "codes in _weight_qdata that do not fit int4"),
        ({"zero_point": np.full((2, 2), -9, np.int8)}, "zero points in _weight_zero_point that do not fit int4"),
    ],
)
def test_values_outside_their_bits_are_refused_when_they_are_read(
    changes: Mapping[str, Array], reason: str, tmp_path: Path
) -> None:
    metadata = header("IntxUnpackedToInt8Tensor", **INTX4)
    tensor = written(tmp_path, SCHEME, small(**changes), metadata)["p.weight"]
    with pytest.raises(InputError, match=reason):
        tensor.read()


@pytest.mark.parametrize("zero", [16, -1])
def test_zero_points_of_int4_outside_4_bits_are_refused_when_they_are_read(zero: int, tmp_path: Path) -> None:
    stored = int4_small(np.int32, zero=np.full((1, 2), zero, np.int8))
    tensor = written(tmp_path, SCHEME, stored, header("Int4PlainInt32Tensor", block_size=[1, 8]))["p.weight"]
    with pytest.raises(InputError, match="do not fit 4 bits"):
        tensor.read()


def test_scales_of_activations_are_named_as_ignored(tmp_path: Path) -> None:
    stored = small(act_quant_scale=np.ones((1, 1), np.float32))
    written(tmp_path, SCHEME, stored, header("Int8Tensor"))
    assert list(opened(tmp_path, SCHEME).ignored) == ["p._weight_act_quant_scale"]


def test_every_class_that_is_read_is_tested_here() -> None:
    text = Path(__file__).read_text()
    assert all(f'"{kind}"' in text for kind in torchao.READERS)
