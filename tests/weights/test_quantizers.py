"""The quantizers: what they promise of every block, that neighbours do not matter, and that operators read them so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weights.graphs import embedding, linear, model, packed, value
from tests.weights.stored import random, run_packed, stored, whole
from truecast.checkpoint.bits import unpack
from truecast.errors import InputError
from truecast.proof.searched import searched_shares
from truecast.weights.forms import quantized
from truecast.weights.precision import Precision
from truecast.weights.quantizers import STREAMED
from truecast.weights.quantizers.blocks import Quantized

SEARCHED = ("k-quant", "hqq")
KINDS = (
    *("normal", "heavy tails", "both ends", "positive", "far from zero"),
    *("constant", "zeros", "small", "tiny", "huge"),
)


def decoded(made: Quantized, bits: int, width: int, codes: np.ndarray | None = None) -> np.ndarray:
    """float32 [n, width] of (code - zero) · scale + offset, from the definition; `codes` [n, blocks, block] instead."""
    count, blocks = made.scales.shape
    block = made.codes.shape[2] * 8 // bits
    if codes is None:
        codes = unpack(made.codes, bits, block)
    zeros: np.ndarray = np.full((count, blocks), 1 << (bits - 1))
    if made.zeros is not None:
        zeros = unpack(made.zeros, bits, blocks)
    values = (codes.astype(np.float32) - zeros[..., None].astype(np.float32)) * made.scales[..., None]
    if made.offsets is not None:
        values = values + made.offsets[..., None]
    return values.astype(np.float32).reshape(count, -1)[:, :width]


def rows_of_kind(kind: str, rows: int, width: int, seed: int = 0) -> np.ndarray:
    numbers = np.random.default_rng(seed)
    values = numbers.standard_normal((rows, width)).astype(np.float32)
    if kind == "heavy tails":
        values = values**5
    elif kind == "both ends":
        values[:, ::16], values[:, 1::16] = 3, -3
    elif kind == "positive":
        values = np.abs(values)
    elif kind == "far from zero":
        values = 10 + values / 100
    elif kind == "constant":
        values = np.repeat(values[:, :1], width, axis=1)
    elif kind == "zeros":
        values[::2] = 0
    elif kind == "small":
        values *= np.float32(1e-25)
    elif kind == "tiny":
        values *= np.float32(1e-38)
    elif kind == "huge":
        values *= np.float32(1e15)
    return values


def shares(values: np.ndarray, made: Quantized, bits: int, block: int) -> np.ndarray:
    """What the proof says of the blocks."""
    width = values.shape[1]
    lowest = np.zeros((*made.scales.shape, block), np.uint8)
    ends = tuple(decoded(made, bits, width, codes) for codes in (lowest, lowest + np.uint8((1 << bits) - 1)))
    return searched_shares(values, decoded(made, bits, width), (ends[0], ends[1]), bits, block)


def errors(values: np.ndarray, made: Quantized, bits: int, block: int) -> np.ndarray:
    """Sum of squared errors of each block, float64 [rows, blocks]."""
    difference = (decoded(made, bits, values.shape[1]) - values).astype(np.float64)
    padded = np.pad(difference, ((0, 0), (0, -values.shape[1] % block)))
    result: np.ndarray = np.square(padded.reshape(len(values), -1, block)).sum(-1)
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", SEARCHED)
def test_every_block_keeps_the_bound_of_the_proof(method: str, bits: int, kind: str) -> None:
    values = rows_of_kind(kind, 40, 96)
    assert shares(values, STREAMED[method].quantize(values, bits, 32), bits, 32).max() <= 1


@given(
    st.sampled_from(SEARCHED), st.sampled_from([4, 8]), st.sampled_from([16, 32, 64]), st.integers(0, 999), st.data()
)
@settings(max_examples=40, deadline=None)
def test_no_block_is_worse_than_rounding_to_nearest(
    method: str, bits: int, block: int, seed: int, data: st.DataObject
) -> None:
    width = data.draw(st.integers(1, 3)) * block
    kind = data.draw(st.sampled_from(KINDS))
    values = rows_of_kind(kind, 5, width, seed)
    plain, found = (
        errors(values, STREAMED[name].quantize(values, bits, block), bits, block) for name in ("rtn", method)
    )
    room = 1e-5 * plain + block * (np.abs(values).max() * 2.0**-20 + 1e-38) ** 2
    assert (found <= plain + room).all()


@pytest.mark.parametrize(("method", "least"), [("k-quant", 0.8), ("hqq", 1.0)])
def test_a_search_wins_about_a_decibel(method: str, least: float) -> None:
    values = rows_of_kind("normal", 200, 256)
    sums = {name: errors(values, STREAMED[name].quantize(values, 4, 32), 4, 32).sum() for name in ("rtn", method)}
    assert 10 * np.log10(sums["rtn"] / sums[method]) > least


@pytest.mark.parametrize("method", STREAMED)
def test_neighbours_do_not_matter(method: str) -> None:
    values = rows_of_kind("heavy tails", 90, 128)
    whole_, again = (STREAMED[method].quantize(values, 4, 32) for _ in range(2))
    for start, stop in ((0, 1), (1, 60), (60, 90)):
        part = STREAMED[method].quantize(values[start:stop], 4, 32)
        for name in ("codes", "scales", "zeros", "offsets"):
            rows = getattr(whole_, name)
            if rows is None:
                assert getattr(part, name) is None
                continue
            assert np.array_equal(getattr(part, name), rows[start:stop]), name
            assert np.array_equal(getattr(again, name), rows), name


def test_pieces_of_the_search_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = rows_of_kind("normal", 30, 64)
    large = STREAMED["k-quant"].quantize(values, 4, 32)
    monkeypatch.setattr("truecast.weights.quantizers.blocks.PIECE_WEIGHTS", 7 * 32)
    small = STREAMED["k-quant"].quantize(values, 4, 32)
    assert np.array_equal(large.codes, small.codes) and np.array_equal(large.scales, small.scales)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", SEARCHED)
@pytest.mark.parametrize("kind", ["constant", "zeros"])
def test_blocks_of_one_value_are_exact(kind: str, method: str, bits: int) -> None:
    values = rows_of_kind(kind, 20, 64)
    kept = decoded(STREAMED[method].quantize(values, bits, 32), bits, 64)
    flat = values.std(1) == 0
    assert flat.any()
    np.testing.assert_allclose(kept[flat], values[flat], rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", SEARCHED)
def test_a_block_far_from_zero_is_not_lost(method: str) -> None:
    """ONNX Runtime's own k-quant clips its zero point to 0 there, and keeps a tenth of the weight."""
    values = rows_of_kind("far from zero", 4, 64)
    kept = decoded(STREAMED[method].quantize(values, 4, 32), 4, 64)
    assert np.abs(kept - values).max() < 0.7


# In the graph ---------------------------------------------------------------------------------------------------------


def precision(method: str, bits: int = 4) -> Precision:
    return Precision(f"int{bits}", ir.DataType.FLOAT, bits, 32, "float", method=method)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("method", STREAMED)
def test_onnxruntime_multiplies_with_what_was_made(method: str, transposed: bool, bits: int, tmp_path: Path) -> None:
    x, weight = random(1, 3, 64), random(24, 64, seed=1) + np.float32(0.3)
    source = value("x", ir.DataType.FLOAT, 1, "n", 64)
    array = np.ascontiguousarray(weight.T) if transposed else weight
    node = linear(source, "p.weight", array.shape, "", transposed)
    packer = packed(model([source], [node], [node.outputs[0]]), {"p.weight": array}, precision(method, bits))
    kept = decoded(STREAMED[method].quantize(weight, bits, 32), bits, 64)
    np.testing.assert_allclose(run_packed(packer, tmp_path, {"x": x})[0], x @ kept.T, atol=1e-4)


@pytest.mark.parametrize("method", STREAMED)
def test_onnxruntime_looks_up_what_was_made(method: str, tmp_path: Path) -> None:
    table, ids = random(48, 64) + np.float32(0.3), np.array([[5, 0, 47]], np.int64)
    source = value("ids", ir.DataType.INT64, 1, "n")
    node = embedding(source, "embed.weight", table.shape)
    packer = packed(
        model([source], [node], [node.outputs[0]]), {"embed.weight": table}, precision(method), "embed.weight"
    )
    kept = decoded(STREAMED[method].quantize(table, 4, 32), 4, 64)
    np.testing.assert_allclose(run_packed(packer, tmp_path, {"ids": ids})[0], kept[ids], atol=1e-6)


@pytest.mark.parametrize("method", STREAMED)
def test_operands_have_the_shapes_that_they_are_announced_with(method: str) -> None:
    form = quantized("p.weight", stored("p.weight", random(10, 96)), precision(method))
    for rows, operand in zip(whole(form.binding), form.binding.operands, strict=True):
        assert (rows.shape, rows.dtype) == (operand.shape, operand.dtype.numpy())
    assert method == "rtn" or method in form.binding.packing


def test_k_quant_pads_the_last_block_and_hqq_refuses_to() -> None:
    values = rows_of_kind("normal", 6, 80)
    made = STREAMED["k-quant"].quantize(values, 4, 32)
    assert made.scales.shape == (6, 3) and shares(values, made, 4, 32).max() <= 1
    with pytest.raises(InputError, match=r"--method hqq wants rows of whole blocks, and p has rows of 80, .* 32;"):
        quantized("p", stored("p", values), precision("hqq"))
