"""Rotation inside GroupQueryAttention, where the padding contract allows it.

The operator can rotate by itself, by a token's place in its row; that is right for rows padded on the right only, and
needs a table of all positions. The table is made by running the traced cos and sin of the author's own module over
every position; frequencies that depend on the length of the call have no such table and stay outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from truecast.checkpoint.model import Array

HEAD_DIM_MULTIPLE, WIDTH_MULTIPLE = 16, 8
"""GroupQueryAttention's rules for head_dim and for the table's width when it rotates (1.31, operator schema)."""


@dataclass(frozen=True)
class _Rotation:
    """The two tables and the form of one rotation; equal for all layers that share them."""

    cos: ir.Value
    sin: ir.Value
    interleaved: int
    repeated: int
    width: int


def fuse_rotary(model: ir.Model, positions: int) -> dict[str, Array]:
    """Moves rotations into the attention operators that read them; returns the tables, [positions, width/2].

    The tables have the dtype of what they rotate, as the operator wants it.

    Args:
        model: a graph that still has `truecast::Rotary` nodes; its buffers hold data.
        positions: how many positions the table covers, the model's context length.
    """
    tables: dict[str, Array] = {}
    made: dict[_Rotation, tuple[ir.Value, ir.Value] | None] = {}
    for node in list(model.graph):
        rotation = _rotation_of(node)
        if rotation is None:
            continue
        if rotation not in made:
            assert node.inputs[3] is not None and node.inputs[3].dtype is not None
            made[rotation] = _make_tables(model, rotation, positions, tables, node.inputs[3].dtype)
        values = made[rotation]
        if values is not None:
            _absorb(node, rotation, values)
    return tables


def _rotation_of(node: ir.Node) -> _Rotation | None:
    """The rotation that both query and key of an attention node go through, if the operator could do it."""
    if node.op_type != "GroupQueryAttention":
        return None
    sources = [value.producer() if value is not None else None for value in node.inputs[:2]]
    if any(source is None or source.op_type != "Rotary" for source in sources):
        return None
    query, key = (_describe(source) for source in sources if source is not None)
    head_dim = _head_dim(node)
    fits = head_dim % HEAD_DIM_MULTIPLE == 0 and query.width % (2 * WIDTH_MULTIPLE) == 0
    return query if query == key and fits else None


def _describe(node: ir.Node) -> _Rotation:
    _, cos, sin = node.inputs
    assert cos is not None and sin is not None and cos.shape is not None
    width = cos.shape[-1]
    assert isinstance(width, int)
    return _Rotation(cos, sin, node.attributes["interleaved"].as_int(), node.attributes["repeated"].as_int(), width)


def _head_dim(node: ir.Node) -> int:
    past = node.inputs[3]
    assert past is not None and past.shape is not None
    size = past.shape[-1]
    assert isinstance(size, int)
    return size


def _make_tables(
    model: ir.Model, rotation: _Rotation, positions: int, tables: dict[str, Array], dtype: ir.DataType
) -> tuple[ir.Value, ir.Value] | None:
    whole = _evaluate(model, rotation, positions)
    shorter = (1 << power for power in range(1, (positions - 1).bit_length()))
    for length in shorter:
        part = _evaluate(model, rotation, length)
        if not all(np.array_equal(a[:length], b) for a, b in zip(whole, part, strict=True)):
            return None
    values = []
    for part_name, table in zip(("cos", "sin"), whole, strict=True):
        name = f"rotary.{len(tables) // 2}.{part_name}"
        tables[name] = np.ascontiguousarray(table, dtype.numpy())
        value = ir.Value(name=name, shape=ir.Shape(table.shape), type=ir.TensorType(dtype))
        model.graph.initializers.add(value)
        values.append(value)
    return values[0], values[1]


def _evaluate(model: ir.Model, rotation: _Rotation, positions: int) -> tuple[Array, Array]:
    """cos and sin of positions 0 … positions - 1, one value per pair."""
    ids = next(value for value in model.graph.inputs if value.name == "position_ids")
    part = ir.convenience.extract(model.graph, [ids], [rotation.cos, rotation.sin])
    small = ir.Model(part, ir_version=model.ir_version)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(small).SerializeToString(), options, providers=["CPUExecutionProvider"])
    tables = session.run(None, {"position_ids": np.arange(positions, dtype=np.int64)[None]})
    half = rotation.width // 2
    kept = slice(0, None, 2) if rotation.repeated else slice(0, half)
    cos, sin = (np.asarray(table, np.float32)[0][:, kept] for table in tables)
    return cos, sin


def _absorb(node: ir.Node, rotation: _Rotation, values: tuple[ir.Value, ir.Value]) -> None:
    rotated = [value.producer() for value in node.inputs[:2] if value is not None]
    for index, source in enumerate(rotated):
        assert source is not None
        node.replace_input_with(index, source.inputs[0])
    inputs = [*node.inputs, None, None, None, None][: max(len(node.inputs), 9)]
    inputs[7:9] = values
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)
    node.attributes.add(ir.AttrInt64("do_rotary", 1))
    node.attributes.add(ir.AttrInt64("rotary_interleaved", rotation.interleaved))
    for source in rotated:
        if source is not None and source.graph is not None and not source.outputs[0].uses():
            source.graph.remove(source, safe=True)


def pack_heads(model: ir.Model) -> None:
    """Attention that reads the three parts of one split product reads the product itself."""
    for node in list(model.graph):
        if node.op_type != "GroupQueryAttention" or node.inputs[1] is None:
            continue
        sources = {value.producer() if value is not None else None for value in node.inputs[:3]}
        split = sources.pop()
        whole = not sources and split is not None and split.op_type == "Split"
        if whole and split is not None and list(split.outputs) == list(node.inputs[:3]):
            node.replace_input_with(0, split.inputs[0])
            node.replace_input_with(1, None)
            node.replace_input_with(2, None)
