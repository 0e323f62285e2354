"""Float32 islands: nodes of a graph of 16 bits that compute in float32, with casts at their border.

| why a node is one | by |
|---|---|
| what it reads or gives goes beyond what float16 holds with safety | measurement (`reach`) |
| its operator does not take bfloat16, or the provider has no such kernel | rule (`kernels`) |

Norms need no island: their operators take values of 16 bits and compute in float32 inside (`stash_type` 1).
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from truecast.halves.model import Half
from truecast.halves.nodes import WIDE, all_nodes, cast_behind, dtypes, give_instead, read_instead


def keep_float32(model: ir.Model, half: Half, names: Collection[str], wide: Collection[str] = ()) -> None:
    """Makes the nodes of those names compute in float32.

    Args:
        model: changed in place.
        half: what the rest of the graph computes in.
        names: of nodes.
        wide: names of values that all who read them, inside the islands, take in float32: no cast to 16 bits may lie
            between. An input or an output of the graph among them is float32.
    """
    nodes = all_nodes(model)
    types = dtypes(model, nodes)
    narrow = {value for value, dtype in types.items() if dtype is half.dtype}
    inside = {node for node in nodes if node.name in set(names)}
    widened: dict[ir.Value, ir.Value] = {}
    for given in model.graph.inputs:
        if given in narrow and given.name in wide:
            given.type = ir.TensorType(WIDE)
            widened[given] = given
    for node in (it for it in nodes if it in inside):
        for index, value in enumerate(node.inputs):
            if value is not None and value in narrow:
                if value not in widened:
                    widened[value] = cast_behind(model, value, WIDE, f"{value.name}.float32")
                node.replace_input_with(index, widened[value])
        if node.op_type == "Cast" and node.attributes["to"].as_int() == half.dtype:
            node.attributes.add(ir.AttrInt64("to", WIDE))
        for result in node.outputs:
            if result in narrow:
                result.type = ir.TensorType(WIDE)
                narrow.discard(result)
                _narrow_again(model, half, result, inside, result.name in wide)


def _narrow_again(model: ir.Model, half: Half, value: ir.Value, inside: Collection[ir.Node], wide: bool) -> None:
    """Nodes outside of the islands read a float32 value in 16 bits."""
    outside = [(node, index) for node, index in value.uses() if node not in inside]
    given = value.is_graph_output() and not wide
    if not outside and not given:
        return
    small = cast_behind(model, value, half.dtype, f"{value.name}.{half.name}")
    for node, index in outside:
        node.replace_input_with(index, small)
    if given:
        give_instead(value, small)


def float32_ends(model: ir.Model, half: Half) -> None:
    """Inputs and outputs of the graph become float32, with casts inside: NumPy knows no bfloat16."""
    for value in model.graph.inputs:
        if value.dtype is half.dtype:
            value.type = ir.TensorType(WIDE)
            small = cast_behind(model, value, half.dtype, f"{value.name}.{half.name}")
            read_instead(value, small)
    for value in list(model.graph.outputs):
        if value.dtype is half.dtype:
            wide = cast_behind(model, value, WIDE, f"{value.name}.float32")
            give_instead(value, wide)
