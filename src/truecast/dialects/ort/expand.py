"""From abstract operators to those of ONNX Runtime: the mask's contract and rotation.

Data flow: `truecast::Contract(mask, ids)` → what GroupQueryAttention wants to know about lengths and padding;
`truecast::Rotary(x, cos, sin)` → com.microsoft.RotaryEmbedding, its table made once for all layers of a kind.
"""

from __future__ import annotations

import onnx_ir as ir

from truecast.dialects.expand import CONTRIB, NodeWriter
from truecast.dialects.recurrence import expand_scan

MASKED = {ir.DataType.FLOAT: 1e30, ir.DataType.FLOAT16: 3e4}
"""Subtracted from the scores of masked keys: beyond any score, and twice of it is still finite."""


def expand(model: ir.Model) -> None:
    """Replaces every abstract operator except those that name a weight."""
    tables: dict[tuple[ir.Value, bool], ir.Value] = {}
    rows: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        if node.op_type == "Contract":
            _contract(node)
        elif node.op_type == "Rotary":
            _rotary(node, model.graph, tables, rows)
        elif node.op_type == "SelectiveScan":
            _take_over(node, expand_scan(node))
    model.graph.opset_imports[CONTRIB] = 1


def _take_over(node: ir.Node, results: list[ir.Value]) -> None:
    for old, new in zip(node.outputs, results, strict=True):
        new.shape, new.type = old.shape, old.type
        if old.is_graph_output():
            new.name = old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _contract(node: ir.Node) -> None:
    """last_position int32 [batch], total_length int32 scalar, and for any mask a bias [batch, 1, sequence, total]."""
    write, (mask, ids) = NodeWriter(node), node.inputs
    lengths = write.op("Shape", [mask], {"start": 1, "end": 2})
    total = write.op("Cast", [write.op("Squeeze", [lengths])], {"to": ir.DataType.INT32}, name="total_length")
    one = write.scalar(1, ir.DataType.INT64)
    if node.attributes["padding"].as_string() == "right":
        real = write.op("ReduceSum", [mask, write.ints(1)], {"keepdims": 0})
        last = write.op("Cast", [write.op("Sub", [real, one])], {"to": ir.DataType.INT32}, name="last_position")
        _take_over(node, [last, total])
        return
    batch = write.op("Shape", [mask], {"start": 0, "end": 1})
    every = write.op("Expand", [write.op("Sub", [lengths, one]), batch])
    last = write.op("Cast", [every], {"to": ir.DataType.INT32}, name="last_position")
    dtype = node.outputs[2].dtype
    assert dtype is not None
    hidden = write.op("Sub", [write.op("Cast", [mask], {"to": dtype}), write.scalar(1, dtype)])
    row = write.op("Unsqueeze", [write.op("Mul", [hidden, write.scalar(MASKED[dtype], dtype)]), write.ints(1, 2)])
    new = write.op("Shape", [ids], {"start": 1, "end": 2})
    shape = write.op("Concat", [batch, write.ints(1), new, lengths], {"axis": 0})
    _take_over(node, [last, total, write.op("Expand", [row, shape], name="attention_bias")])


def _rotary(
    node: ir.Node, graph: ir.Graph, tables: dict[tuple[ir.Value, bool], ir.Value], rows: dict[ir.Value, ir.Value]
) -> None:
    """The operator looks rows up in a table; ours has one row per token of this step, numbered in order."""
    write, (states, cos, sin) = NodeWriter(node), node.inputs
    assert cos is not None and sin is not None
    repeated = bool(node.attributes["repeated"].as_int())
    for table in (cos, sin):
        if (table, repeated) not in tables:
            tables[table, repeated] = _table(write, table, repeated)
    if cos not in rows:
        rows[cos] = _rows(write, cos)
    numbers = _spread(write, rows[cos], states) if _batch(cos) == 1 != _batch(states) else rows[cos]
    attributes = {
        "interleaved": node.attributes["interleaved"].as_int(),
        "num_heads": node.attributes["num_heads"].as_int(),
        "rotary_embedding_dim": node.attributes["rotary_embedding_dim"].as_int(),
    }
    inputs = [states, numbers, tables[cos, repeated], tables[sin, repeated]]
    _take_over(node, [write.op("RotaryEmbedding", inputs, attributes, domain=CONTRIB)])


def _rows(write: NodeWriter, cos: ir.Value) -> ir.Value:
    """The numbers of the tables' rows, int64 of the shape that cos has without its last axis."""
    shape = write.op("Shape", [cos], {"start": 0, "end": 2})
    count = write.op("ReduceProd", [shape], {"keepdims": 0})
    numbers = write.op("Range", [write.scalar(0, ir.DataType.INT64), count, write.scalar(1, ir.DataType.INT64)])
    return write.op("Reshape", [numbers, shape], name=_row_name(write))


def _row_name(write: NodeWriter) -> str | None:
    """A name for the first row numbers of a graph; others are named by where they are."""
    taken = any(value.name == "token_rows" for node in write.graph for value in node.outputs)
    return None if taken else "token_rows"


def _spread(write: NodeWriter, rows: ir.Value, states: ir.Value | None) -> ir.Value:
    """Row numbers of one row of tokens for every row of `states`: the operator does not repeat them by itself."""
    assert states is not None
    return write.op("Expand", [rows, write.op("Shape", [states], {"start": 0, "end": 2})])


def _batch(value: ir.Value | None) -> object:
    """The size of the first axis, a number or a symbol."""
    assert value is not None and value.shape is not None
    size = value.shape[0]
    return size if isinstance(size, int) else size.value


def _table(write: NodeWriter, table: ir.Value, repeated: bool) -> ir.Value:
    """[batch, sequence, width], every angle twice → [batch · sequence, width/2]."""
    assert table.shape is not None
    width = table.shape[-1]
    assert isinstance(width, int)
    if repeated:
        bounds = [write.ints(0), write.ints(width), write.ints(2), write.ints(2)]
    else:
        bounds = [write.ints(0), write.ints(width // 2), write.ints(2), write.ints(1)]
    half = write.op("Slice", [table, *bounds])
    return write.op("Reshape", [half, write.ints(-1, width // 2)])
