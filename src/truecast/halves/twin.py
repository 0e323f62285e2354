"""The float32 twin of a graph in floats of 16 bits: what its kernels compute, on a provider that has none.

Data flow: the graph → weights, constants and inputs cast to float32 → every operator computes in float32 → (`rounded`)
what was of 16 bits is cast there and back behind each node. A kernel that takes and gives 16 bits and sums in float32
gives the very same but for the order of its sums. ONNX Runtime keeps such pairs of casts at every level of optimization
(seen in 1.31; the proof looks at the bits).

Without rounding it is the module in float32, with weights of 16 bits: what calibration looks at.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from truecast.halves.model import Half
from truecast.halves.nodes import WIDE, all_nodes, cast_behind, computed, dtypes, read_instead

TYPE_ATTRIBUTES = ("to", "dtype")
"""Attributes that name the dtype of a result."""
TENSOR_ATTRIBUTES = ("value",)


def make_twin(model: ir.Model, half: Half, rounded: bool = True) -> dict[str, str]:
    """Makes `model` its float32 twin; returns the values that were of 16 bits, and what they are called now.

    Values that keep their name are float32 as well. Inputs of the graph become float32 unless `rounded`, which casts
    them, so that the feeds stay the same.
    """
    nodes = all_nodes(model)
    types = dtypes(model, nodes)
    narrow = {value for value, dtype in types.items() if dtype is half.dtype}
    results = [value for node, value in computed(nodes) if value in narrow]
    ends = [value for value in (*model.graph.inputs, *model.graph.initializers.values()) if value in narrow]
    for node in nodes:
        _widen_attributes(node, half.dtype)
    for value in narrow:
        if value not in ends:
            value.type = ir.TensorType(WIDE)
    for value in ends:
        if value.is_graph_input() and not rounded:
            value.type = ir.TensorType(WIDE)
        elif value.uses():
            wide = cast_behind(model, value, WIDE, f"{value.name}.twin")
            read_instead(value, wide)
    names = {value.name or "": value.name or "" for value in results}
    if not rounded:
        return names
    for value in results:
        name = value.name or ""
        small = cast_behind(model, value, half.dtype, f"{name}.narrow")
        read_instead(value, small)
        wide = cast_behind(model, small, WIDE, f"{name}.rounded")
        read_instead(small, wide)
        names[name] = wide.name or ""
    return names


def _widen_attributes(node: ir.Node, narrow: ir.DataType) -> None:
    for name in TYPE_ATTRIBUTES:
        found = node.attributes.get(name)
        if found is not None and found.type == ir.AttributeType.INT and found.as_int() == narrow:
            node.attributes.add(ir.AttrInt64(name, WIDE))
    for name in TENSOR_ATTRIBUTES:
        found = node.attributes.get(name)
        if found is not None and found.type == ir.AttributeType.TENSOR and found.as_tensor().dtype == narrow:
            node.attributes.add(ir.AttrTensor(name, ir.tensor(found.as_tensor().numpy().astype(np.float32))))
