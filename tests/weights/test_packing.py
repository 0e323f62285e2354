"""Abstract weight operators become ONNX Runtime's, and the packed graph computes what the weights say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.weights.graphs import WIDTH, attention, embedding, feeds, kinds, linear, model, packed, value
from tests.weights.stored import random, run_packed, stored, whole
from truecast.errors import InputError
from truecast.weights import floats, packing
from truecast.weights.floats import dense_binding
from truecast.weights.forms import quantized
from truecast.weights.packing import Packer, in_rows
from truecast.weights.precision import Precision
from truecast.weights.quantize import BLOCK_SIZES, dequantize_rows, quantize_rows

VOCABULARY, OUT = 48, 24
FP32 = Precision("fp32", ir.DataType.FLOAT)
AS_STORED = Precision("fp32", ir.DataType.FLOAT, as_stored=True)
INT4 = Precision("int4", ir.DataType.FLOAT, 4, 32, "float")
INT8 = Precision("int8", ir.DataType.FLOAT, 8, 16, "float")
CLOSE = 1e-4
"""Of sums of 64 products of unit size."""


def rounded(weight: np.ndarray, precision: Precision) -> np.ndarray:
    """What a precision keeps of a weight [out, in]."""
    if precision.bits is None:
        return weight
    codes, scales = quantize_rows(weight, precision.bits, precision.block)
    return dequantize_rows(codes, scales, precision.bits, weight.shape[1])


def one_linear(precision: Precision, tmp_path: Path, bias: bool, transposed: bool) -> tuple[Packer, np.ndarray, Any]:
    """A single product, packed and run; with what it should give."""
    x, weight, shift = random(3, WIDTH), random(OUT, WIDTH, seed=1), random(OUT, seed=2)
    source = value("x", ir.DataType.FLOAT, "n", WIDTH)
    array = np.ascontiguousarray(weight.T) if transposed else weight
    node = linear(source, "p.weight", array.shape, "p.bias" if bias else "", transposed)
    arrays = {"p.weight": array} | ({"p.bias": shift} if bias else {})
    packer = packed(model([source], [node], [node.outputs[0]]), arrays, precision)
    expected = x @ rounded(weight, precision).T + (shift if bias else 0)
    return packer, run_packed(packer, tmp_path, {"x": x})[0], expected


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("precision", [FP32, AS_STORED, INT4, INT8], ids=["fp32", "as stored", "int4", "int8"])
def test_a_product_gives_the_numbers_of_its_weight(
    precision: Precision, bias: bool, transposed: bool, tmp_path: Path
) -> None:
    _, got, expected = one_linear(precision, tmp_path, bias, transposed)
    np.testing.assert_allclose(got, expected, atol=CLOSE)


@pytest.mark.parametrize(
    ("precision", "bias", "transposed", "expected"),
    [
        (FP32, False, False, {"MatMul": 1}),
        (FP32, True, True, {"MatMul": 1, "Add": 1}),
        (AS_STORED, False, False, {"FusedMatMul": 1}),
        (AS_STORED, False, True, {"MatMul": 1}),
        (INT4, True, False, {"MatMulNBits": 1}),
    ],
)
def test_a_product_is_one_operator(
    precision: Precision, bias: bool, transposed: bool, expected: dict[str, int], tmp_path: Path
) -> None:
    packer, _, _ = one_linear(precision, tmp_path, bias, transposed)
    assert kinds(packer) == expected


@pytest.mark.parametrize(("activations", "level"), [("int8", 4), ("float", 0)])
def test_activations_decide_the_accuracy_level(activations: str, level: int, tmp_path: Path) -> None:
    precision = Precision("int4", ir.DataType.FLOAT, 4, 32, activations)
    packer, _, _ = one_linear(precision, tmp_path, bias=False, transposed=False)
    node = next(node for node in packer.model.graph if node.op_type == "MatMulNBits")
    assert node.attributes["accuracy_level"].as_int() == level
    assert (node.attributes["bits"].as_int(), node.attributes["block_size"].as_int()) == (4, 32)


# Embedding and head ---------------------------------------------------------------------------------------------------


def language_model(precision: Precision, tied: bool, width: int = WIDTH) -> tuple[Packer, dict[str, np.ndarray]]:
    """Token embedding and head, without a model between them."""
    ids = value("ids", ir.DataType.INT64, "n")
    tokens = embedding(ids, "embed.weight", (VOCABULARY, width))
    head = linear(tokens.outputs[0], "head.weight", (VOCABULARY, width))
    arrays = {"embed.weight": random(VOCABULARY, width)}
    if not tied:
        arrays["head.weight"] = random(VOCABULARY, width, seed=1)
    graph = model([ids], [tokens, head], [head.outputs[0]])
    links = {"head.weight": "embed.weight"} if tied else {}
    return packed(graph, arrays, precision, "embed.weight", "head.weight", links), arrays


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("width", [WIDTH, 80, 72])
@pytest.mark.parametrize("precision", [FP32, AS_STORED, INT4, INT8], ids=["fp32", "as stored", "int4", "int8"])
def test_embedding_and_head_give_the_numbers_of_their_weights(
    precision: Precision, tied: bool, width: int, tmp_path: Path
) -> None:
    packer, arrays = language_model(precision, tied, width)
    ids = np.array([5, 0, VOCABULARY - 1, 5])
    if tied and precision.bits is not None:  # one table of both, of whole blocks where any size allows it
        fitting = [size for size in BLOCK_SIZES if size <= precision.block and width % size == 0]
        precision = replace(precision, block=max(fitting, default=precision.block))
    rows = rounded(arrays["embed.weight"], precision)[ids]
    expected = rows @ rounded(arrays.get("head.weight", arrays["embed.weight"]), precision).T
    np.testing.assert_allclose(run_packed(packer, tmp_path, {"ids": ids})[0], expected, atol=CLOSE)


@pytest.mark.parametrize("precision", [FP32, INT4, INT8], ids=["fp32", "int4", "int8"])
def test_a_tied_head_shares_the_table_of_the_embedding(precision: Precision) -> None:
    shared, _ = language_model(precision, tied=True)
    apart, _ = language_model(precision, tied=False)
    assert 2 * bytes_of(shared) == bytes_of(apart)


def bytes_of(packer: Packer) -> int:
    return sum(operand.nbytes for binding in packer.bindings for operand in binding.operands)


def test_an_embedding_that_is_no_tokens_table_stays_float() -> None:
    ids = value("ids", ir.DataType.INT64, "n")
    positions = embedding(ids, "wpe.weight", (VOCABULARY, WIDTH))
    graph = model([ids], [positions], [positions.outputs[0]])
    packer = packed(graph, {"wpe.weight": random(VOCABULARY, WIDTH)}, INT4, "wte.weight")
    assert kinds(packer) == {"Gather": 1}


# Queries, keys and values ---------------------------------------------------------------------------------------------


ATTENTION_ARRAYS = {
    f"a.{part}_proj.{kind}": random(size, WIDTH, seed=size) if kind == "weight" else random(size, seed=size + 1)
    for part, size in (("q", 32), ("k", 16), ("v", 16))
    for kind in ("weight", "bias")
}


def test_queries_keys_and_values_become_one_product() -> None:
    packer = packed(attention(), ATTENTION_ARRAYS, INT4)
    assert kinds(packer)["MatMulNBits"] == 1
    assert packer.bindings[0].sources == ("a.q_proj.weight", "a.k_proj.weight", "a.v_proj.weight")
    results = {value.name for node in packer.model.graph for value in node.outputs}
    assert {"a.q_proj", "a.k_proj", "a.v_proj"} <= results


def test_one_product_gives_the_numbers_of_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = run_packed(packed(attention(), ATTENTION_ARRAYS, INT4), tmp_path, feeds())
    monkeypatch.setattr(packing, "attention_groups", lambda nodes: [])
    apart = packed(attention(), ATTENTION_ARRAYS, INT4)
    assert kinds(apart)["MatMulNBits"] == 3
    for got, expected in zip(together, run_packed(apart, tmp_path, feeds()), strict=True):
        np.testing.assert_allclose(got, expected, atol=CLOSE)


@pytest.mark.parametrize(
    ("graph", "precision"),
    [(attention(biases=2), INT4), (attention(shared_input=False), INT4), (attention(), FP32)],
    ids=["biased unlike", "of two inputs", "floats"],
)
def test_products_that_do_not_fit_together_stay_apart(graph: ir.Model, precision: Precision) -> None:
    counts = kinds(packed(graph, ATTENTION_ARRAYS, precision))
    assert counts["MatMulNBits"] + counts["MatMul"] == 3


# Bindings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 7 * WIDTH, 1 << 24])
def test_a_transposed_weight_is_read_piece_by_piece(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floats, "ROWS_AT_ONCE", at_once)
    weight = random(OUT, WIDTH)
    binding = dense_binding("w", stored("w", weight), ir.DataType.FLOAT, transpose=True)
    assert np.array_equal(whole(binding)[0], weight.T)
    assert np.array_equal(binding.produce(3, 9)[0], weight.T[3:9])


def test_a_transposed_weight_is_quantized_like_the_other_way_round() -> None:
    weight = random(OUT, WIDTH)
    plain = quantized("w", stored("w", weight), INT4, transposed=False).binding
    turned = quantized("w", stored("w", np.ascontiguousarray(weight.T)), INT4, transposed=True).binding
    assert turned.operands == plain.operands
    for got, expected in zip(turned.produce(3, 9), plain.produce(3, 9), strict=True):
        assert np.array_equal(got, expected)


def test_bfloat16_keeps_its_value_as_float32() -> None:
    weight = random(OUT, WIDTH).astype(ml_dtypes.bfloat16)
    binding = dense_binding("w", stored("w", weight), ir.DataType.FLOAT)
    assert np.array_equal(whole(binding)[0], weight.astype(np.float32))


def test_a_scalar_is_a_weight_too() -> None:
    binding = dense_binding("w", stored("w", np.array(0.5, np.float32)), ir.DataType.FLOAT)
    assert whole(binding)[0] == np.float32(0.5)


@pytest.mark.parametrize(("largest", "fits"), [(65504.0, True), (65520.0, False), (1e6, False)])
def test_what_float16_cannot_hold_is_refused(largest: float, fits: bool) -> None:
    weight = random(4, 2)
    weight[3, 1] = largest
    binding = dense_binding("big.weight", stored("big.weight", weight), ir.DataType.FLOAT16)
    if fits:
        assert whole(binding)[0].dtype == np.float16
        return
    with pytest.raises(InputError, match=r"'big.weight' holds values beyond float16's range \(65504\)"):
        binding.produce(0, 4)


def test_nan_is_found_while_a_weight_is_packed() -> None:
    weight = random(OUT, WIDTH)
    weight[7, 3] = np.nan
    for binding in (
        dense_binding("w", stored("w", weight), ir.DataType.FLOAT),
        dense_binding("w", stored("w", weight), ir.DataType.FLOAT, transpose=True),
        quantized("w", stored("w", weight), INT4, transposed=False).binding,
    ):
        with pytest.raises(InputError, match="holds NaN or infinity"):
            whole(binding)


def test_blocks_in_rows_are_the_same_bytes() -> None:
    form = quantized("w", stored("w", random(OUT, WIDTH)), INT4)
    codes, rows = whole(form.binding)[0], whole(in_rows(form).binding)[0]
    assert rows.shape == (OUT, WIDTH // 2)
    assert rows.tobytes() == codes.tobytes()


def test_every_other_initializer_is_bound_under_its_name() -> None:
    x = value("x", ir.DataType.FLOAT, "n", WIDTH)
    scale = value("norm.weight", ir.DataType.FLOAT, WIDTH)
    node = ir.node("Mul", [x, scale])
    graph = model([x], [node], [node.outputs[0]])
    graph.graph.initializers.add(scale)
    packer = packed(graph, {"norm.weight": random(WIDTH)}, INT4)
    assert [binding.operands[0].name for binding in packer.bindings] == ["norm.weight"]
