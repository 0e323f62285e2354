"""bitsandbytes: what the library decodes its own checkpoints to is read bit for bit; contradictions are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoint.schemes.stored import (
    DATA,
    Array,
    digest,
    from_encoding,
    opened,
    oracle,
    written,
)
from truecast.checkpoint.bits import unpack
from truecast.checkpoint.encoding import Affine, Codebook
from truecast.checkpoint.schemes.bitsandbytes import SCHEME
from truecast.errors import InputError

NF4 = [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105003625154495, 0.0]
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
STATE = "weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bitsandbytes-nf4", "bitsandbytes NF4, block 64"),
        ("bitsandbytes-nf4-double", "bitsandbytes NF4, block 64, double quantization"),
        ("bitsandbytes-fp4", "bitsandbytes FP4, block 64, double quantization"),
        ("bitsandbytes-int8", "bitsandbytes int8, per channel"),
    ],
)
def test_the_storage_is_named(name: str, words: str) -> None:
    tensor = opened(DATA / name, SCHEME).tensors["model.layers.1.self_attn.q_proj.weight"]
    assert tensor.stored_as == words


@pytest.mark.parametrize("name", ["bitsandbytes-nf4", "bitsandbytes-nf4-double"])
def test_four_bit_codes_reach_the_encoding_as_they_are(name: str) -> None:
    tensor = opened(DATA / name, SCHEME).tensors["model.layers.0.mlp.down_proj.weight"]
    assert isinstance(tensor.encoding, Codebook)
    assert (tensor.encoding.bits, tensor.encoding.group, tensor.shape) == (4, 64, (64, 128))
    np.testing.assert_array_equal(tensor.encoding.table, np.array(NF4, np.float32))
    assert digest(from_encoding(tensor)) == oracle(name)[tensor.name]


def test_blocks_that_straddle_rows_are_decoded_and_say_so() -> None:
    tensor = opened(DATA / "bitsandbytes-fp4", SCHEME).tensors["model.layers.0.mlp.down_proj.weight"]
    assert tensor.shape == (64, 112)
    assert tensor.encoding is None
    assert tensor.stored_as.endswith("its blocks straddle rows")


def test_int8_codes_are_the_stored_bytes_around_128_and_their_product_is_within_2_ulp() -> None:
    tensor = opened(DATA / "bitsandbytes-int8", SCHEME).tensors["model.layers.0.self_attn.q_proj.weight"]
    assert isinstance(tensor.encoding, Affine)
    assert (tensor.encoding.bits, tensor.encoding.zero, tensor.encoding.group) == (8, 128, 64)
    codes = tensor.encoding.codes(0, 64)
    stored = next(part for part in tensor.parts if part.name.endswith(".weight"))
    np.testing.assert_array_equal(codes.astype(np.int64) - 128, stored.read())
    exact = tensor.read()
    assert (np.abs(from_encoding(tensor) - exact) <= 2 * np.spacing(np.abs(exact))).all()


def packed(codes: Array) -> Array:
    """Codes in bitsandbytes' order: the even one in the high bits."""
    flat = codes.reshape(-1).tolist()
    pairs = zip(flat[::2], [*flat[1::2], 0], strict=False)
    return np.array([[high * 16 + low] for high, low in pairs], np.uint8)


def state_bytes(**changes: Any) -> Array:
    state = {"quant_type": "nf4", "blocksize": 32, "dtype": "float16", "shape": [3, 64]} | changes
    return np.frombuffer(json.dumps(state).encode(), np.uint8)


def parts(shape: tuple[int, int], block: int, seed: int = 0) -> tuple[dict[str, Array], Array]:
    """Hand-written parts of one module, and the weight they mean, worked out one element at a time."""
    generator = np.random.default_rng(seed)
    size = shape[0] * shape[1]
    codes = generator.integers(0, 16, size)
    absmax = generator.uniform(0.1, 2, -(-size // block)).astype(np.float32)
    table = np.array(NF4, np.float32)
    weight = [table[code] * absmax[place // block] for place, code in enumerate(codes)]
    stored = {
        "p.weight": packed(codes),
        "p.weight.absmax": absmax,
        "p.weight.quant_map": table,
        f"p.{STATE}": state_bytes(shape=list(shape), blocksize=block),
    }
    return stored, np.array(weight, np.float32).reshape(shape)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 7), width=st.integers(1, 80), block=st.sampled_from([32, 64, 128, 256]))
def test_any_shape_and_block_is_decoded_element_by_element(rows: int, width: int, block: int, tmp_path: Path) -> None:
    stored, weight = parts((rows, width), block, seed=rows * 1000 + width)
    tensor = written(tmp_path, SCHEME, stored)["p.weight"]
    np.testing.assert_array_equal(tensor.read(), weight)
    for row in range(rows):
        np.testing.assert_array_equal(tensor.rows(row, row + 1), weight[row : row + 1])


@pytest.mark.parametrize(("width", "block", "group"), [(64, 32, 32), (64, 64, 64), (32, 64, 32), (64, 256, 64)])
def test_a_block_of_several_rows_gives_each_row_its_scale(width: int, block: int, group: int, tmp_path: Path) -> None:
    stored, weight = parts((9, width), block)
    tensor = written(tmp_path, SCHEME, stored)["p.weight"]
    assert isinstance(tensor.encoding, Codebook)
    assert tensor.encoding.group == group
    np.testing.assert_array_equal(from_encoding(tensor), weight)
    np.testing.assert_array_equal(from_encoding(tensor)[5:7], tensor.rows(5, 7))


def test_codes_are_swapped_into_the_low_bits_first_order(tmp_path: Path) -> None:
    stored, _ = parts((2, 64), 64)
    stored["p.weight"][0] = 0xE2
    encoding = written(tmp_path, SCHEME, stored)["p.weight"].encoding
    assert unpack(encoding.codes(0, 1), 4, 64)[0, :2].tolist() == [14, 2]


@pytest.mark.parametrize("storage", [np.float16, np.float32])
def test_any_storage_dtype_holds_the_same_bytes(storage: type, tmp_path: Path) -> None:
    stored, weight = parts((3, 64), 32)
    stored["p.weight"] = stored["p.weight"].reshape(-1).view(storage).reshape(-1, 1)
    np.testing.assert_array_equal(written(tmp_path, SCHEME, stored)["p.weight"].read(), weight)


def test_double_quantization_over_several_outer_blocks(tmp_path: Path) -> None:
    stored, _ = parts((6, 64), 32)
    inner = np.arange(12, dtype=np.uint8) * 21
    table = np.linspace(-1, 1, 256, dtype=np.float32)
    outer, offset = np.array([0.5, 2.0, 3.0], np.float32), 0.75
    nested = {"nested_blocksize": 5, "nested_dtype": "float32", "nested_offset": offset}
    stored["p.weight.absmax"] = inner
    stored |= {"p.weight.nested_absmax": outer, "p.weight.nested_quant_map": table}
    stored[f"p.{STATE}"] = state_bytes(shape=[6, 64], **nested)
    absmax = [table[code] * outer[block // 5] + np.float32(offset) for block, code in enumerate(inner)]
    encoding = written(tmp_path, SCHEME, stored)["p.weight"].encoding
    for start, stop in [(0, 6), (2, 3), (3, 6)]:
        expected = np.array(absmax, np.float32).reshape(6, 2)[start:stop]
        np.testing.assert_array_equal(encoding.scales[0].read(start, stop), expected)


BROKEN: dict[str, tuple[dict[str, Array | None], str]] = {
    "no absmax": ({"p.weight.absmax": None}, "no p.weight.absmax"),
    "no table": ({"p.weight.quant_map": None}, "no p.weight.quant_map"),
    "no codes": ({"p.weight": None}, "no p.weight"),
    "codes cut off": ({"p.weight": np.zeros((95, 1), np.uint8)}, "95 bytes in weight .* need 96"),
    "absmax cut off": ({"p.weight.absmax": np.zeros(5, np.float32)}, "5 values in weight.absmax .* need 6"),
    "table of 8": ({"p.weight.quant_map": np.zeros(8, np.float32)}, "8 values in weight.quant_map"),
    "absmax in 8 bits alone": ({"p.weight.absmax": np.zeros(6, np.uint8)}, "nothing beside it to scale it"),
    "state not JSON": ({f"p.{STATE}": np.frombuffer(b"{", np.uint8)}, "cannot be read"),
    "state without shape": ({f"p.{STATE}": np.frombuffer(b"{}", np.uint8)}, "cannot be read"),
    "three dimensions": ({f"p.{STATE}": state_bytes(shape=[3, 8, 8])}, "with shape"),
    "shape of words": ({f"p.{STATE}": state_bytes(shape=["3", 64])}, "with shape"),
    "block of 0": ({f"p.{STATE}": state_bytes(blocksize=0)}, "blocksize 0"),
    "the other type": ({f"p.{STATE}": state_bytes(quant_type="fp4")}, "fp4"),
    "larger shape": ({f"p.{STATE}": state_bytes(shape=[4, 64])}, "need 128"),
    "nested without its settings": ({"p.weight.nested_absmax": np.zeros(1, np.float32)}, "cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_parts_that_contradict_each_other_are_refused(case: str, tmp_path: Path) -> None:
    changes, reason = BROKEN[case]
    stored = {key: part for key, part in (parts((3, 64), 32)[0] | changes).items() if part is not None}
    with pytest.raises(InputError, match=reason) as caught:
        written(tmp_path, SCHEME, stored)
    assert str(tmp_path) in str(caught.value)


def int8_parts(**changes: Array) -> dict[str, Array]:
    codes = np.arange(-128, 128, dtype=np.int16).astype(np.int8).reshape(4, 64)
    scale = np.array([1.0, 0.3, 12.5, 1e-3], np.float32)
    stored = {"weight": codes, "SCB": scale, "weight_format": np.array(0, np.uint8)} | changes
    return {f"p.{name}": part for name, part in stored.items()}


def test_int8_of_old_files_without_a_format_is_read(tmp_path: Path) -> None:
    stored = int8_parts()
    del stored["p.weight_format"]
    tensor = written(tmp_path, SCHEME, stored)["p.weight"]
    expected = stored["p.weight"].astype(np.float32) * stored["p.SCB"][:, None] * np.float32(7.874015718698502e-3)
    np.testing.assert_array_equal(tensor.read(), expected)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weight_format": np.array(2, np.uint8)}, "tiles of a GPU kernel"),
        ({"SCB": np.ones(3, np.float32)}, "3 values in SCB"),
        ({"weight": np.zeros(64, np.int8)}, "4 values in SCB"),
    ],
)
def test_int8_that_cannot_be_right_is_refused(changes: dict[str, Array], reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        written(tmp_path, SCHEME, int8_parts(**changes))


def test_a_float_weight_beside_a_scale_is_not_taken(tmp_path: Path) -> None:
    stored = int8_parts(weight=np.ones((4, 64), np.float16))
    tensors = written(tmp_path, SCHEME, stored)
    assert tensors["p.weight"].stored_as == "F16"
    assert "p.SCB" in tensors
