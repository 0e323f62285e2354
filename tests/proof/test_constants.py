"""Constant expressions are computed by rows, or refused: never wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.weights.graphs import value
from truecast.dialects.expand import NodeWriter
from truecast.proof.constants import NotByRowsError, base_of, rows_of

ROWS, COLUMNS = 6, 4
Make = Callable[[NodeWriter, ir.Value], ir.Value]


def initializer(write: NodeWriter, array: np.ndarray, name: str = "w") -> ir.Value:
    """An initializer of the writer's graph."""
    made = ir.Value(name=name, const_value=ir.tensor(array, name=name), type=ir.TensorType(ir.DataType.FLOAT))
    write.graph.initializers.add(made)
    return made


def writer() -> NodeWriter:
    """Writes in front of a node of an otherwise empty graph."""
    last = ir.node("Identity", [value("x", ir.DataType.FLOAT)])
    ir.Graph([last.inputs[0]], [last.outputs[0]], nodes=[last], opset_imports={"": 21}, name="g")  # type: ignore[list-item]
    return NodeWriter(last)


def table(*columns: int, rows: int = ROWS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, *(columns or (COLUMNS,)))).astype(np.float32)


W, OTHER, NARROW = table(), table(seed=1), table(1, seed=2)

EXPRESSIONS: dict[str, tuple[Make, np.ndarray]] = {
    "as it is": (lambda write, w: w, W),
    "cast": (lambda write, w: write.op("Cast", [w], {"to": ir.DataType.FLOAT16}), W.astype(np.float16)),
    "times another": (lambda write, w: write.op("Mul", [w, initializer(write, OTHER, "o")]), W * OTHER),
    "times one per row": (lambda write, w: write.op("Mul", [initializer(write, NARROW, "o"), w]), NARROW * W),
    "plus another": (lambda write, w: write.op("Add", [w, initializer(write, OTHER, "o")]), W + OTHER),
    "times a number": (lambda write, w: write.op("Mul", [w, write.scalar(3, ir.DataType.FLOAT)]), W * np.float32(3)),
    "a number times it": (lambda write, w: write.op("Mul", [write.scalar(3, ir.DataType.FLOAT), w]), W * np.float32(3)),
    "reshaped": (lambda write, w: write.op("Reshape", [w, write.ints(0, 2, 2)]), W.reshape(ROWS, 2, 2)),
    "flattened": (lambda write, w: write.op("Reshape", [w, write.ints(0, -1, 1)]), W[..., None]),
    "cut": (lambda write, w: write.op("Slice", [w, *(write.ints(n) for n in (1, 3, 1))]), W[:, 1:3]),
    "repeated": (
        lambda write, w: write.op(
            "Reshape",
            [
                write.op("Expand", [write.op("Unsqueeze", [w, write.ints(2)]), write.ints(1, 1, 3)]),
                write.ints(0, 3 * COLUMNS),
            ],
        ),
        np.repeat(W, 3, axis=1),
    ),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_rows_of_an_expression_are_rows_of_its_value(name: str) -> None:
    make, want = EXPRESSIONS[name]
    write = writer()
    result = make(write, initializer(write, W))
    read = rows_of(result)
    for start, stop in ((0, ROWS), (0, 1), (2, 5), (5, 6)):
        rows = read(start, stop)
        assert rows.dtype == want.dtype
        np.testing.assert_array_equal(rows, want[start:stop])


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16, np.uint8, np.int8])
def test_every_stored_dtype_is_cast_to_its_value(dtype: Any) -> None:
    array = np.arange(24).reshape(6, 4).astype(dtype)
    write = writer()
    read = rows_of(write.op("Cast", [initializer(write, array)], {"to": ir.DataType.FLOAT}))
    np.testing.assert_array_equal(read(1, 3), array[1:3].astype(np.float32))


def plus_input(write: NodeWriter, w: ir.Value) -> ir.Value:
    return write.op("Add", [w, value("x", ir.DataType.FLOAT, ROWS, COLUMNS)])


REFUSED: dict[str, Make] = {
    "an input": lambda write, w: value("x", ir.DataType.FLOAT, ROWS, COLUMNS),
    "something plus an input": plus_input,
    "another operator": lambda write, w: write.op("Softmax", [w], {"axis": 0}),
    "rows in another order": lambda write, w: write.op("Transpose", [w], {"perm": [1, 0]}),
    "rows reshaped": lambda write, w: write.op("Reshape", [w, write.ints(-1, 2)]),
    "rows of a literal zero": lambda write, w: write.op("Reshape", [w, write.ints(0, 2, 2)], {"allowzero": 1}),
    "rows expanded": lambda write, w: write.op("Expand", [w, write.ints(ROWS, COLUMNS)]),
    "an axis in front": lambda write, w: write.op("Unsqueeze", [w, write.ints(0)]),
    "an axis counted from the end": lambda write, w: write.op("Unsqueeze", [w, write.ints(-3)]),
    "rows cut": lambda write, w: write.op("Slice", [w, *(write.ints(n) for n in (1, 3, 0))]),
    "cut without axes": lambda write, w: write.op("Slice", [w, write.ints(0, 1), write.ints(ROWS, 3)]),
    "cut in steps": lambda write, w: write.op("Slice", [w, *(write.ints(n) for n in (0, 4, 1, 2))]),
    "one row for all": lambda write, w: write.op("Mul", [w, initializer(write, table(rows=1), "o")]),
    "one vector for all rows": lambda write, w: write.op("Mul", [w, initializer(write, table()[0], "o")]),
    "a shape that is computed": lambda write, w: write.op("Reshape", [w, value("shape", ir.DataType.INT64, 2)]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_constant_by_rows_is_refused(name: str) -> None:
    write = writer()
    result = REFUSED[name](write, initializer(write, W))
    with pytest.raises(NotByRowsError):
        rows_of(result)(0, 2)


def test_the_base_is_what_the_first_inputs_lead_to() -> None:
    write = writer()
    w = initializer(write, W)
    scaled = write.op("Mul", [write.op("Cast", [w], {"to": ir.DataType.FLOAT}), initializer(write, OTHER, "o")])
    assert base_of(write.op("Reshape", [scaled, write.ints(0, 2, 2)])) is w
    assert base_of(plus_input(write, w)) is w
    assert base_of(write.op("Softmax", [w])) is None
    assert base_of(None) is None
