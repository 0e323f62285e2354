"""ONNX's Scan for `truecast::SelectiveScan`: y and the last h from decay, u, B, C and the first h.

The body takes one position of each and the state; it reads nothing from outside, so that it moves with its node:

    h' = decay · h + u ⊗ B        [batch, heads, width, state]
    y  = h' · C                   [batch, heads, width, 1]
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from truecast.dialects.expand import NodeWriter

POSITIONS = 1
"""The axis of positions in everything but the state."""
FLOAT = ir.TensorType(ir.DataType.FLOAT)


def expand_scan(node: ir.Node) -> list[ir.Value]:
    """Writes the Scan in front of an abstract node; returns what stands in for its outputs."""
    write = NodeWriter(node)
    decay, u, inward, outward, first = node.inputs
    columns = write.op("Unsqueeze", [u, write.ints(4)])
    rows = write.op("Unsqueeze", [inward, write.ints(3)])
    readers = write.op("Unsqueeze", [outward, write.ints(4)])
    attributes = {
        "body": _body(),
        "num_scan_inputs": 4,
        "scan_input_axes": [POSITIONS] * 4,
        "scan_output_axes": [POSITIONS],
    }
    last, outputs = write.ops("Scan", [first, decay, columns, rows, readers], [None, None], attributes)
    return [write.op("Squeeze", [outputs, write.ints(4)]), last]


def _body() -> ir.Graph:
    state, decay, column, row, reader = (_value(name) for name in ("state", "decay", "u", "B", "C"))
    kept = ir.node("Mul", [decay, state])
    added = ir.node("Mul", [column, row])
    result, output = _value("next_state"), _value("y")
    following = ir.node("Add", [kept.outputs[0], added.outputs[0]], outputs=[result])
    reading = ir.node("MatMul", [result, reader], outputs=[output])
    nodes: Sequence[ir.Node] = (kept, added, following, reading)
    for number, inner in enumerate(nodes):
        inner.name = f"scan_{number}"
    kept.outputs[0].name, added.outputs[0].name = "kept_state", "added_state"
    return ir.Graph([state, decay, column, row, reader], [result, output], nodes=nodes, name="selective_scan")


def _value(name: str) -> ir.Value:
    return ir.Value(name=f"scan/{name}", type=FLOAT, shape=ir.Shape([None] * 4))
