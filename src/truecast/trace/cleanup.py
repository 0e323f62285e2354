"""Clean-up of a traced graph: shape arithmetic becomes constants, moves of axes cancel, no-ops vanish.

Every rule looks at one node and keeps the graph's results, bit for bit but for the order of a norm's sums; `clean`
applies them until none fires. Sizes are compared by the symbols that torch.export proved equal: a rule never guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    IdentityEliminationPass,
    RemoveUnusedNodesPass,
)

Rule = Callable[[ir.Node, ir.Graph], bool]

LAST_AXIS_NORMS = frozenset({"SimplifiedLayerNormalization", "LayerNormalization"})
"""Operators that treat every row of the last axis alike, so that other axes may be moved before or after them."""


def clean(model: ir.Model) -> None:
    """Applies every rule until nothing changes."""
    changed = True
    while changed:
        changed = False
        for node in list(model.graph):
            if node.graph is not None:
                changed |= any(rule(node, model.graph) for rule in RULES)
        IdentityEliminationPass()(model)
        RemoveUnusedNodesPass()(model)
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)


def constant(graph: ir.Graph, before: ir.Node, array: np.ndarray) -> ir.Value:
    """A Constant node holding `array`, placed before a node."""
    node = ir.node("Constant", [], {"value": ir.tensor(array)})
    output = node.outputs[0]
    output.shape, output.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.insert_before(before, node)
    return output


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """The array a value is known to hold, or None."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def dims(value: ir.Value | None) -> list[int | str] | None:
    """Sizes of a value: an int, or the symbol's name; None when the rank or any size is unknown."""
    if value is None or value.shape is None:
        return None
    sizes = [d if isinstance(d, int) else d.value for d in value.shape]
    return None if any(size is None for size in sizes) else sizes  # type: ignore[return-value]


def replace(value: ir.Value, by: ir.Value) -> None:
    """All users of `value` read `by` instead, graph outputs included; a known shape or type is kept."""
    if by.shape is None:
        by.shape = value.shape
    if by.type is None:
        by.type = value.type
    if value.is_graph_output():
        name = value.name
        ir.convenience.replace_all_uses_with(value, by, replace_graph_outputs=True)
        by.name = name
    else:
        ir.convenience.replace_all_uses_with(value, by)


def _removable(node: ir.Node) -> bool:
    """A node may be bypassed unless that would make a graph input an output, or one value two outputs."""
    source = node.inputs[0]
    if source is None:
        return False
    return not (node.outputs[0].is_graph_output() and (source.producer() is None or source.is_graph_output()))


def _perm(node: ir.Node) -> list[int]:
    return list(node.attributes["perm"].as_ints())


def no_op(node: ir.Node, graph: ir.Graph) -> bool:
    """Reshape, Expand, Slice or Cast to what the input is already; Transpose that moves nothing; x·1."""
    if node.op_type not in ("Reshape", "Expand", "Slice", "Cast", "Transpose", "Mul") or not _removable(node):
        return False
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    if node.op_type == "Mul":
        factor = constant_of(node.inputs[1])
        useless = factor is not None and factor.size == 1 and factor.ndim == 0 and float(factor) == 1.0
    elif node.op_type == "Cast":
        useless = source.dtype is not None and source.dtype == node.attributes["to"].as_int()
    elif node.op_type == "Transpose":
        useless = _perm(node) == sorted(_perm(node))
    else:
        useless = dims(source) is not None and dims(source) == dims(result) and not _may_reverse(node)
    if useless:
        replace(result, source)
    return useless


def cast_like(node: ir.Node, graph: ir.Graph) -> bool:
    """A cast to the dtype of another value is one to that dtype: few runtimes have a kernel for the former."""
    if node.op_type != "CastLike" or node.inputs[1] is None or node.inputs[1].dtype is None:
        return False
    assert node.inputs[0] is not None
    cast = ir.node("Cast", [node.inputs[0]], {"to": node.inputs[1].dtype})
    cast.outputs[0].shape, cast.outputs[0].dtype = node.outputs[0].shape, node.inputs[1].dtype
    graph.insert_before(node, cast)
    replace(node.outputs[0], cast.outputs[0])
    graph.remove(node, safe=True)
    return True


def _may_reverse(node: ir.Node) -> bool:
    """Whether a Slice walks backwards: torch's flip keeps every size, too."""
    if node.op_type != "Slice" or len(node.inputs) < 5:
        return False
    steps = constant_of(node.inputs[4])
    return steps is None or bool((steps < 0).any())


def reshape_of_reshape(node: ir.Node, graph: ir.Graph) -> bool:
    """Two reshapes in a row are the second one."""
    source = node.inputs[0] if node.op_type == "Reshape" else None
    inner = source.producer() if source is not None else None
    if inner is None or inner.op_type != "Reshape" or dims(node.outputs[0]) is None:
        return False
    target = _reshape_target(inner.inputs[0], node.outputs[0])
    if target is None and _has_copied_axis(node):
        return False
    node.replace_input_with(0, inner.inputs[0])
    if target is not None:
        _set_target(node, graph, target)
    return True


def _set_target(node: ir.Node, graph: ir.Graph, target: np.ndarray) -> None:
    node.replace_input_with(1, constant(graph, node, target))
    node.attributes.pop("allowzero", None)  # a 0 copies an axis


def _has_copied_axis(node: ir.Node) -> bool:
    target = constant_of(node.inputs[1])
    return target is None or bool((target == 0).any())


def _reshape_target(source: ir.Value | None, result: ir.Value) -> np.ndarray | None:
    """Reshape's second input as a constant: 0 copies an axis, one -1 is inferred; None when that cannot say it."""
    before, after = dims(source), dims(result)
    if before is None or after is None or 0 in after:
        return None
    target = [
        size if isinstance(size, int) else 0 if i < len(before) and before[i] == size else -1
        for i, size in enumerate(after)
    ]
    return np.array(target, np.int64) if target.count(-1) <= 1 else None


def constant_reshape(node: ir.Node, graph: ir.Graph) -> bool:
    """Computed target shapes become constants."""
    if node.op_type != "Reshape" or constant_of(node.inputs[1]) is not None:
        return False
    target = _reshape_target(node.inputs[0], node.outputs[0])
    if target is None:
        return False
    _set_target(node, graph, target)
    return True


def transpose_of_transpose(node: ir.Node, graph: ir.Graph) -> bool:
    """Two transposes in a row are one."""
    source = node.inputs[0] if node.op_type == "Transpose" else None
    inner = source.producer() if source is not None else None
    if inner is None or inner.op_type != "Transpose":
        return False
    first = _perm(inner)
    node.attributes.add(ir.AttrInt64s("perm", [first[i] for i in _perm(node)]))
    node.replace_input_with(0, inner.inputs[0])
    return True


def transpose_after_norm(node: ir.Node, graph: ir.Graph) -> bool:
    """A norm of a transposed tensor is the transposed norm, where the last axis stays: the move may then cancel."""
    if node.op_type not in LAST_AXIS_NORMS or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return False
    source = node.inputs[0]
    inner = source.producer() if source is not None else None
    if inner is None or inner.op_type != "Transpose" or _perm(inner)[-1] != len(_perm(inner)) - 1:
        return False
    if node.attributes["axis"].as_int() not in (-1, len(_perm(inner)) - 1):
        return False
    assert inner.inputs[0] is not None
    result = node.outputs[0]
    moved = ir.node("Transpose", [result], {"perm": _perm(inner)})
    moved.outputs[0].shape, moved.outputs[0].type = result.shape, result.type
    ir.convenience.replace_all_uses_with(result, moved.outputs[0])
    moved.replace_input_with(0, result)
    node.replace_input_with(0, inner.inputs[0])
    result.shape = inner.inputs[0].shape
    graph.insert_after(node, moved)
    return True


def split_to_sequence(node: ir.Node, graph: ir.Graph) -> bool:
    """A sequence of parts that are taken out again at constant places is a Split."""
    if node.op_type != "SplitToSequence":
        return False
    sizes = _part_sizes(node)
    takers = [use.node for use in node.outputs[0].uses()]
    if sizes is None or any(taker.op_type != "SequenceAt" for taker in takers):
        return False
    places = [constant_of(taker.inputs[1]) for taker in takers]
    if any(place is None for place in places):
        return False
    parts = [ir.Value() for _ in sizes]
    axis = node.attributes["axis"].as_int()
    lengths = constant(graph, node, np.array(sizes, np.int64))
    split = ir.node("Split", [node.inputs[0], lengths], {"axis": axis}, outputs=parts)
    graph.insert_before(node, split)
    for taker, place in zip(takers, places, strict=True):
        assert place is not None
        part, result = parts[int(place)], taker.outputs[0]
        part.shape, part.type = result.shape, result.type
        replace(result, part)
        graph.remove(taker, safe=True)
    graph.remove(node, safe=True)
    return True


def _part_sizes(node: ir.Node) -> list[int] | None:
    """The lengths of the parts along the split axis, where they are constant."""
    sizes, shape = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None, dims(node.inputs[0])
    if sizes is None or shape is None or node.attributes["keepdims"].as_int() != 1:
        return None
    if sizes.ndim == 1:
        return [int(size) for size in sizes]
    whole, part = shape[node.attributes["axis"].as_int()], int(sizes)
    if not isinstance(whole, int):
        return None
    rest = whole % part
    return [part] * (whole // part) + ([rest] if rest else [])


def instance_norm(node: ir.Node, graph: ir.Graph) -> bool:
    """A group norm of one channel a group is an instance norm, for which ONNX Runtime has a kernel on processors."""
    sizes = dims(node.inputs[0]) if node.op_type == "GroupNormalization" else None
    if not sizes or len(sizes) < 3 or sizes[1] != node.attributes["num_groups"].as_int():
        return False
    epsilon = node.attributes.get("epsilon")
    kept = {} if epsilon is None else {"epsilon": epsilon.as_float()}
    norm = ir.node("InstanceNormalization", node.inputs, kept)
    norm.outputs[0].shape, norm.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    graph.insert_before(node, norm)
    replace(node.outputs[0], norm.outputs[0])
    graph.remove(node, safe=True)
    return True


RULES: Sequence[Rule] = (
    cast_like,
    no_op,
    reshape_of_reshape,
    constant_reshape,
    transpose_of_transpose,
    transpose_after_norm,
    split_to_sequence,
    instance_norm,
)


def forget_inner_shapes(graph: ir.Graph) -> None:
    """Drops the shapes of inner values: they hold the trace's own symbols, and the runtime infers better ones."""
    ends = {*graph.inputs, *graph.outputs}
    for node in graph:
        for value in node.outputs:
            if value not in ends:
                value.shape = None
                value.type = None
