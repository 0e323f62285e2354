"""Weights in standard operators: ONNX Runtime multiplies the identity, and the weight must come back bit for bit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings

from tests.encodings import FLOAT8_VALUES, FP4, NF4, Drawn, affines, make_affine, make_codebook
from tests.weights.graphs import embedding, kinds, linear, model, value
from tests.weights.stored import encoded, random, sources
from truecast.checkpoint.model import StoredTensor
from truecast.runtime.providers import KNOWN_KEYS, PAIRED_KEY, session_options
from truecast.weights.emitters import EMITTERS
from truecast.weights.packing import Packer
from truecast.weights.precision import Precision
from truecast.weights.standard import StandardEmitter
from truecast.weights.writer import attach, write_weights

OWN = Precision("as-is", ir.DataType.FLOAT, activations="float", own=True)
ULP = 2.0**-23
INT8_ERROR = (1e-4, 5e-2)
"""What rounding activations to int8 does to a product, relative: noticed, and not more."""


def product_of(drawn: Drawn, bias: bool = False) -> Packer:
    x = value("x", ir.DataType.FLOAT, "b", "n", drawn.width)
    node = linear(x, "p.weight", (drawn.rows, drawn.width), "p.bias" if bias else "")
    arrays: dict[str, np.ndarray | StoredTensor] = {
        "p.weight": encoded("p.weight", drawn.encoding, (drawn.rows, drawn.width))
    }
    if bias:
        arrays["p.bias"] = random(drawn.rows)
    return packed(model([x], [node], [node.outputs[0]]), arrays)


def lookup_of(drawn: Drawn) -> Packer:
    ids = value("ids", ir.DataType.INT64, "b", "n")
    node = embedding(ids, "e.weight", (drawn.rows, drawn.width))
    tensor = encoded("e.weight", drawn.encoding, (drawn.rows, drawn.width))
    return packed(model([ids], [node], [node.outputs[0]]), {"e.weight": tensor}, "e.weight")


def packed(
    graph: ir.Model, arrays: dict[str, np.ndarray | StoredTensor], table: str = "", head: str = "", tied: bool = False
) -> Packer:
    packer = Packer(
        graph, sources(arrays, {head: table} if tied else None), OWN, table, head, emitter=StandardEmitter()
    )
    packer.pack()
    for domain in ("truecast", "com.microsoft"):
        graph.opset_imports.pop(domain)
    return packer


def opened(packer: Packer, folder: Path, optimized: bool = True, level: str = "0") -> ort.InferenceSession:
    write_weights(folder / "model.onnx.data", packer.bindings)
    attach(packer.model, packer.bindings, packer.aliases, "model.onnx.data", folder)
    ir.save(packer.model, folder / "model.onnx")
    options = session_options(1, entries={PAIRED_KEY: level})
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    return ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def weights_of(packer: Packer, width: int) -> Iterator[np.ndarray]:
    """The weight [rows, width] as a product has it, optimized or not, row by row or all at once."""
    identity = np.eye(width, dtype=np.float32)
    for optimized in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            session = opened(packer, Path(folder), optimized)
            for x in (identity[None], identity[:, None]):
                yield np.asarray(session.run(None, {"x": x})[0]).reshape(width, -1).T


def rows_of(packer: Packer, rows: int) -> Iterator[np.ndarray]:
    for optimized in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            session = opened(packer, Path(folder), optimized)
            for ids in (np.arange(rows)[None], np.arange(rows)[::-1, None]):
                result = np.asarray(session.run(None, {"ids": ids})[0])
                yield result.reshape(rows, -1)[ids.reshape(-1).argsort()]


def assert_same(got: np.ndarray, drawn: Drawn) -> None:
    """Bit for bit; an offset is a second product, added to the first."""
    if drawn.affine.offsets:
        assert (np.abs(got.astype(np.float64) - drawn.values) <= 2 * ULP * drawn.terms).all()
    else:
        np.testing.assert_array_equal(got, drawn.values)


@settings(max_examples=40, deadline=None)
@given(affines())
def test_a_product_has_the_very_weights(drawn: Drawn) -> None:
    for got in weights_of(product_of(drawn), drawn.width):
        assert_same(got, drawn)


@settings(max_examples=40, deadline=None)
@given(affines(orders=False))
def test_a_lookup_has_the_very_weights(drawn: Drawn) -> None:
    for got in rows_of(lookup_of(drawn), drawn.rows):
        assert_same(got, drawn)


@pytest.mark.parametrize("table", [NF4, FP4, FLOAT8_VALUES], ids=["nf4", "fp4", "float8"])
def test_a_codebook_has_the_very_weights(table: np.ndarray) -> None:
    drawn = make_codebook(1, table, 64, (6, 192))
    packer = product_of(drawn)
    assert not {node.domain for node in packer.model.graph} - {""}
    for got in weights_of(packer, drawn.width):
        np.testing.assert_array_equal(got, drawn.values)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_table_serves_head_and_lookup(bits: int, tmp_path: Path) -> None:
    drawn = make_affine(3, bits, 32, (40, 64), zero="groups")
    ids, x = value("ids", ir.DataType.INT64, "b", "n"), value("x", ir.DataType.FLOAT, "b", "n", 64)
    nodes = [embedding(ids, "e.weight", (40, 64)), linear(x, "h.weight", (40, 64))]
    graph = model([ids, x], nodes, [node.outputs[0] for node in nodes])
    packer = packed(graph, {"e.weight": encoded("e.weight", drawn.encoding, (40, 64))}, "e.weight", "h.weight", True)
    assert len(packer.bindings) == 1
    session = opened(packer, tmp_path)
    fed = {"ids": np.arange(40)[None], "x": np.eye(64, dtype=np.float32)[None]}
    rows, product = (np.asarray(result)[0] for result in session.run(None, fed))
    np.testing.assert_array_equal(rows, drawn.values)
    np.testing.assert_array_equal(product.T, drawn.values)


@pytest.mark.parametrize(("bits", "codes"), [(2, 4), (4, 4), (8, 8)])
@pytest.mark.parametrize("level", ["0", "4"])
def test_onnx_runtime_makes_one_product_at_the_level_that_is_set(
    bits: int, codes: int, level: str, tmp_path: Path
) -> None:
    drawn = make_affine(5, bits, 32, (64, 128), zero="groups")
    session = opened(product_of(drawn, bias=True), tmp_path, level=level)
    nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    (product,) = (node for node in nodes if node.op_type == "MatMulNBits")
    attributes = {attribute.name: attribute.i for attribute in product.attribute}
    assert (attributes["accuracy_level"], attributes["bits"]) == (int(level), codes)
    assert "DequantizeLinear" not in {node.op_type for node in nodes}
    x = random(1, 3, 128)
    want = x @ drawn.values.T + random(64)
    error = np.abs(np.asarray(session.run(None, {"x": x})[0]) - want).max() / np.abs(want).max()
    low, high = INT8_ERROR
    assert low < error < high if level == "4" else error < low / 10


def test_the_emitter_asks_for_a_key_that_sessions_know() -> None:
    assert StandardEmitter().session_entries(4) == {PAIRED_KEY: "4"}
    assert set(StandardEmitter().session_entries(0)) <= KNOWN_KEYS
    assert EMITTERS["ort"].session_entries(4) == {}


def test_only_products_of_codes_need_a_session_key() -> None:
    drawn = make_affine(5, 4, 32, (64, 128))
    assert product_of(drawn).session_entries == {PAIRED_KEY: "0"}
    assert lookup_of(drawn).session_entries == {}


def test_the_codes_lie_in_the_file_as_the_checkpoint_has_them() -> None:
    drawn = make_affine(5, 4, 32, (64, 128))
    packer = product_of(drawn)
    codes = packer.bindings[0].operands[0]
    assert (codes.dtype, codes.shape) == (ir.DataType.UINT4, (64, 128))
    stored = np.asarray(drawn.affine.codes(0, 64))
    np.testing.assert_array_equal(np.asarray(packer.bindings[0].produce(0, 64)[0]).reshape(64, -1), stored)
    assert kinds(packer)["DequantizeLinear"] == 1


@pytest.mark.parametrize("zero", ["middle", "groups"])
def test_picked_rows_are_decoded_without_dequantize_linear_and_shifts_that_round(zero: str) -> None:
    """OpenVINO refuses the first behind a Gather, and rounds where the second cuts something off."""
    packer = lookup_of(make_affine(7, 4, 32, (40, 64), zero=zero))
    kinds = {node.op_type for node in packer.model.graph}
    assert "DequantizeLinear" not in kinds and "BitShift" in kinds
    for node in packer.model.graph:
        if node.op_type == "BitShift":
            masked = node.inputs[0].producer()
            mask, place = (
                ir.convenience.get_const_tensor(value).numpy() for value in (masked.inputs[1], node.inputs[1])
            )
            assert masked.op_type == "BitwiseAnd" and mask % (1 << int(place)) == 0
