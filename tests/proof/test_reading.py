"""What nodes make of initializers: read from the graph, and equal to what ONNX Runtime would multiply with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.encodings import FLOAT8_VALUES, NF4, WHOLE_ROW, Drawn, make_affine, make_codebook
from tests.weights.stored import run_packed, stored
from tests.weights.test_emission import language_model, lookup_of, product_of, tensor_of
from truecast.proof.operators import BNB_TABLES
from truecast.proof.reading import Quantization, Table, read_tables
from truecast.weights.packing import Packer

ROWS = 6

AFFINE = {
    "middle": make_affine(1, 4, 32, (ROWS, 96)),
    "zero points": make_affine(2, 4, 32, (ROWS, 96), zero="groups"),
    "zero points of two bits": make_affine(2, 2, 16, (ROWS, 80), zero="groups"),
    "order": make_affine(3, 4, 32, (ROWS, 96), order=True),
    "factors": make_affine(4, 8, 16, (ROWS, 96), scales="float16 · six bits"),
    "a part of a block": make_affine(5, 4, 32, (ROWS, 70), zero=3),
    "one scale per row": make_affine(6, 8, WHOLE_ROW, (ROWS, 96), scales="bfloat16"),
}
MOVED = {
    "offsets": make_affine(7, 4, 32, (ROWS, 96), zero="groups", offsets="float16"),
    "offsets, shifted": make_affine(8, 4, 32, (ROWS, 96), zero=0, offsets="float16 · six bits"),
    "offsets, ordered": make_affine(9, 4, 32, (ROWS, 96), zero="groups", offsets="float32", order=True),
}
TABLES = {
    "nf4": make_codebook(1, NF4, 64, (ROWS, 128)),
    "float8": make_codebook(2, FLOAT8_VALUES, 128, (ROWS, 200)),
}


def opened(packer: Packer, folder: Path) -> ir.Model:
    """The graph as an artifact has it, its weights in a file beside it."""
    inputs = packer.model.graph.inputs[0]
    ids = inputs.dtype == ir.DataType.INT64
    width = 1 if ids else int(inputs.shape[-1])  # type: ignore[arg-type, index]
    run_packed(
        packer, folder, {inputs.name or "": np.zeros((1, 1), np.int64) if ids else np.zeros((1, 1, width), np.float32)}
    )
    return ir.load(folder / "model.onnx")


def only(model: ir.Model, name: str) -> Table:
    (table,) = read_tables(model)[name]
    return table


def node(model: ir.Model, kind: str) -> ir.Node:
    return next(one for one in model.graph if one.op_type == kind)


@pytest.mark.parametrize("kind", [*AFFINE, *MOVED, *TABLES])
def test_a_product_is_read_as_its_weight(kind: str, tmp_path: Path) -> None:
    drawn = {**AFFINE, **MOVED, **TABLES}[kind]
    model = opened(product_of(tensor_of(drawn)), tmp_path)
    table = only(model, "p.weight" if kind == "float8" else "p.weight.codes")
    assert (table.shape, table.dtype) == ((ROWS, drawn.width), np.float32)
    for start, stop in ((0, ROWS), (2, 3), (4, ROWS)):
        assert_same(table.read(start, stop), drawn, start, stop)


@pytest.mark.parametrize("kind", ["middle", "zero points", "factors", "offsets", "offsets, shifted", "float8"])
def test_a_lookup_is_read_as_its_table(kind: str, tmp_path: Path) -> None:
    drawn = {**AFFINE, **MOVED, **TABLES}[kind]
    table = only(
        opened(lookup_of(tensor_of(drawn, "e.weight")), tmp_path), "e.weight" if kind == "float8" else "e.weight.codes"
    )
    assert table.shape == (ROWS, drawn.width)
    assert_same(table.read(1, 5), drawn, 1, 5)


def assert_same(rows: np.ndarray, drawn: Drawn, start: int, stop: int) -> None:
    limit = 2 * 2.0**-23 * drawn.terms if getattr(drawn.encoding, "offsets", ()) else np.zeros_like(drawn.values)
    assert rows.shape == (stop - start, drawn.width)
    assert (np.abs(rows.astype(np.float64) - drawn.values[start:stop]) <= limit[start:stop]).all()


@pytest.mark.parametrize("kind", ["middle", "a part of a block"])
def test_a_pad_of_the_author_before_a_product_is_no_part_of_its_weight(kind: str, tmp_path: Path) -> None:
    model = opened(product_of(tensor_of(AFFINE[kind])), tmp_path)
    product = node(model, "MatMulNBits")
    sizes = ir.node("Constant", [], {"value": ir.tensor(np.array([0, 0, 0, 0, 3, 0]))})
    padded = ir.node("Pad", [product.inputs[0], sizes.outputs[0]])
    model.graph.insert_before(product, [sizes, padded])
    product.replace_input_with(0, padded.outputs[0])
    assert_same(only(model, "p.weight.codes").read(0, ROWS), AFFINE[kind], 0, ROWS)


def test_bits_blocks_and_offsets_are_those_of_the_node(tmp_path: Path) -> None:
    for kind, bits, block, moved in (("factors", 8, 16, False), ("offsets", 4, 32, True)):
        found = only(opened(product_of(tensor_of({**AFFINE, **MOVED}[kind])), tmp_path), "p.weight.codes").quantization
        assert isinstance(found, Quantization)
        assert (found.bits, found.block, found.moved) == (bits, block, moved)


def test_floats_that_nodes_read_as_they_are_have_no_entry(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((ROWS, 40)).astype(np.float32)
    assert read_tables(opened(product_of(stored("p.weight", weight)), tmp_path)) == {}
    half = opened(product_of(stored("p.weight", weight.astype(np.float16))), tmp_path)
    np.testing.assert_array_equal(only(half, "p.weight").read(1, 4), weight[1:4].astype(np.float16).astype(np.float32))
    assert only(half, "p.weight").read(0, 1).dtype == np.float32
    (island,) = read_tables(half, islands=True)["p.weight"]
    assert island.read(0, 1).dtype == np.float16


def test_a_table_of_two_readers_is_there_twice(tmp_path: Path) -> None:
    drawn = make_affine(9, 4, 32, (33, 64), zero="groups")
    model = opened(language_model(tensor_of(drawn, "embed.weight"), None), tmp_path)
    found = read_tables(model)
    assert set(found) == {"embed.weight.codes", "embed.weight.rows"}
    for (table,) in found.values():
        np.testing.assert_array_equal(table.read(0, 33), drawn.values)


# What a graph may say otherwise ---------------------------------------------------------------------------------------


def without_zero_points(model: ir.Model) -> None:
    node(model, "MatMulNBits").replace_input_with(3, None)


def without_order(model: ir.Model) -> None:
    gather = node(model, "Gather")
    ir.convenience.replace_all_uses_with(gather.outputs[0], gather.inputs[0])  # type: ignore[arg-type]


def other_table(model: ir.Model) -> None:
    node(model, "MatMulBnb4").attributes.add(ir.AttrInt64("quant_type", 0))


def scaled_twice(model: ir.Model) -> None:
    multiply = node(model, "Mul")
    uses = [(use.node, use.idx) for use in multiply.outputs[0].uses()]
    twice = ir.node("Mul", [multiply.outputs[0], multiply.inputs[1]])
    model.graph.insert_after(multiply, twice)
    for reader, index in uses:
        reader.replace_input_with(index, twice.outputs[0])


@pytest.mark.parametrize(
    ("drawn", "change"),
    [
        (AFFINE["zero points"], without_zero_points),
        (AFFINE["order"], without_order),
        (TABLES["nf4"], other_table),
        (AFFINE["factors"], scaled_twice),
    ],
    ids=["zero points", "order", "table", "scales"],
)
def test_it_follows_the_graph_and_not_what_was_meant(
    drawn: Drawn, change: Callable[[ir.Model], None], tmp_path: Path
) -> None:
    model = opened(product_of(tensor_of(drawn)), tmp_path)
    name = "p.weight.codes"
    np.testing.assert_array_equal(only(model, name).read(0, ROWS), drawn.values)
    change(model)
    assert not np.array_equal(only(model, name).read(0, ROWS), drawn.values)


def test_codes_that_cannot_be_read_by_rows_have_no_entry(tmp_path: Path) -> None:
    model = opened(product_of(tensor_of(TABLES["nf4"])), tmp_path)
    node(model, "MatMulBnb4").attributes.add(ir.AttrInt64("K", 96))
    assert read_tables(model) == {}


def test_scales_that_are_computed_from_inputs_leave_no_entry(tmp_path: Path) -> None:
    model = opened(product_of(tensor_of(AFFINE["middle"])), tmp_path)
    node(model, "MatMulNBits").replace_input_with(2, model.graph.inputs[0])
    assert read_tables(model) == {}


def test_the_tables_of_the_proof_are_written_down_on_their_own() -> None:
    from truecast.weights import forms

    for kind, table in BNB_TABLES.items():
        assert table is not forms.BNB_TABLES[kind]
        np.testing.assert_array_equal(table, forms.BNB_TABLES[kind])
