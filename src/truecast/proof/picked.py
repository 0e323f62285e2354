"""Rows that a graph picks from a table of codes and decodes by the formula: (code - zero) · scale, block by block.

Gather → the bits of each byte → Reshape [n, blocks, block] → Cast → Sub of zero points, or Add of one number → Mul with
the scales. It is read here as what it makes of every row.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from truecast.proof.constants import RowsOf, is_table, rows_of
from truecast.proof.operators import Array

CENTRED = {"Sub": -1, "Add": 1}
"""Operators that take the zero point off a code, and the sign of what they are given."""


def picked_codes(node: ir.Node) -> ir.Value | None:
    """The codes that a product with scales is made of, where rows of them were picked; None for other nodes."""
    centred = _producer(node, 0, "Mul")
    cast = None if centred is None or centred.op_type not in CENTRED else _producer(centred, 0, centred.op_type)
    grouped = None if cast is None else _producer(cast, 0, "Cast")
    codes = None if grouped is None or grouped.op_type != "Reshape" else grouped.inputs[0]
    return codes if codes is not None and _is_picked(codes) else None


def _producer(node: ir.Node, index: int, kind: str) -> ir.Node | None:
    value = node.inputs[index] if node.op_type == kind and len(node.inputs) > index else None
    return None if value is None else value.producer()


def _is_picked(value: ir.Value) -> bool:
    """Whether a Gather of rows is among what a value is made of."""
    node = value.producer()
    while node is not None and node.inputs and node.inputs[0] is not None:
        if node.op_type == "Gather":
            return not is_table(node) and node.inputs[0].is_initializer()
        node = node.inputs[0].producer()
    return False


def read_picked(node: ir.Node) -> RowsOf:
    """The weights of every row, [rows, blocks, block], by the graph's own nodes."""
    return rows_of(node.outputs[0], picked=True)


def has_points(node: ir.Node) -> bool:
    """Whether blocks have zero points of their own."""
    centred = _producer(node, 0, "Mul")
    return centred is not None and centred.op_type == "Sub"


def picked_ends(node: ir.Node, largest: int) -> tuple[RowsOf, RowsOf]:
    """What the code 0 and the largest one stand for in each weight's block, [rows, blocks, block]."""
    centred = _producer(node, 0, "Mul")
    assert centred is not None and centred.inputs[1] is not None and node.inputs[1] is not None
    scales, whole = rows_of(node.inputs[1], picked=True), read_picked(node)
    number, sign = ir.convenience.get_const_tensor(centred.inputs[1]), CENTRED[centred.op_type]
    one = None if number is None else number.numpy()
    points = rows_of(centred.inputs[1], picked=True) if one is None else lambda start, stop: one

    def end(code: int) -> RowsOf:
        def read(start: int, stop: int) -> Array:
            value = (np.float32(code) + sign * points(start, stop)) * scales(start, stop)
            return np.broadcast_to(value, whole(start, stop).shape)

        return read

    return end(0), end(largest)
