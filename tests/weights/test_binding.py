"""Bindings give any run of rows; stacked ones give what the concatenation would."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weights.stored import random, stored, whole
from truecast.weights.binding import Binding, Operand, array_binding, stacked
from truecast.weights.floats import dense_binding
from truecast.weights.forms import quantized
from truecast.weights.precision import Precision

WIDTH = 40
INT4 = Precision("int4", ir.DataType.FLOAT, 4, 16)


def blocks(rows: int, seed: int) -> Binding:
    return quantized(f"w{seed}", stored(f"w{seed}", random(rows, WIDTH, seed=seed)), INT4, transposed=False).binding


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.data())
def test_any_rows_of_a_stack_are_those_of_the_concatenation(sizes: list[int], data: st.DataObject) -> None:
    parts = [blocks(rows, seed) for seed, rows in enumerate(sizes)]
    stack = stacked(parts, ["codes", "scales"])
    start = data.draw(st.integers(0, sum(sizes) - 1))
    stop = data.draw(st.integers(start + 1, sum(sizes)))
    expected = [np.concatenate(pieces) for pieces in zip(*map(whole, parts), strict=True)]
    for got, want in zip(stack.produce(start, stop), expected, strict=True):
        assert np.array_equal(got, want[start:stop])


def test_a_stack_names_its_operands_and_all_its_sources() -> None:
    stack = stacked([blocks(3, 0), blocks(5, 1)], ["codes", "scales"])
    assert stack.sources == ("w0", "w1")
    assert stack.rows == 8
    assert stack.operands == (
        Operand("codes", ir.DataType.UINT8, (8, 3, 8)),
        Operand("scales", ir.DataType.FLOAT, (8, 3)),
    )


def test_an_operand_knows_its_bytes() -> None:
    assert Operand("codes", ir.DataType.UINT8, (8, 3, 16)).nbytes == 8 * 3 * 16
    assert Operand("half", ir.DataType.FLOAT16, (8, 3)).nbytes == 48
    assert Operand("scalar", ir.DataType.FLOAT, ()).nbytes == 4


def test_a_computed_array_has_no_source_but_an_origin() -> None:
    binding = array_binding("table", random(5, 2), "made by hand")
    assert (binding.sources, binding.packing, binding.rows) == ((), "made by hand", 5)
    assert np.array_equal(binding.produce(1, 3)[0], random(5, 2)[1:3])


def test_the_checkpoints_bytes_are_kept_only_where_nothing_changes() -> None:
    half = stored("w", random(4, 2).astype(np.float16))
    assert dense_binding("w", half, ir.DataType.FLOAT).verbatim is None
    assert dense_binding("w", stored("w", random(4, 2)), ir.DataType.FLOAT).verbatim is None
