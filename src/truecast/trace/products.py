"""Products with the weight of a linear module that an author writes out: they become the same leaf.

Some authors take `module.weight` themselves (`x @ layer.weight.T`, `layer.weight @ x`) instead of calling the module;
such a weight would stay in float however it was asked for.
"""

from __future__ import annotations

import onnx_ir as ir
from torch import nn

from truecast.trace.cleanup import replace
from truecast.trace.layers import DOMAIN


def name_products(graph: ir.Graph, model: nn.Module) -> None:
    """Replaces every product of a value with such a weight, [out, in], by the leaf."""
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for node in list(graph):
        if node.op_type != "MatMul":
            continue
        first, second = node.inputs
        if (name := _name(_turned(second))) in linear:
            _become(node, _leaf(graph, node, first, name))
        elif (name := _name(first)) in linear and second is not None and second.shape is not None:
            swap = [*range(len(second.shape) - 2), len(second.shape) - 1, len(second.shape) - 2]
            leaf = _leaf(graph, node, _swapped(graph, node, second, swap), name)
            _become(node, _swapped(graph, node, leaf, swap))


def _turned(value: ir.Value | None) -> ir.Value | None:
    """The matrix that a value is the transpose of."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Transpose" or list(node.attributes["perm"].as_ints()) != [1, 0]:
        return None
    return node.inputs[0]


def _name(value: ir.Value | None) -> str:
    """The name of an initializer; empty for other values."""
    return (value.name or "") if value is not None and value.is_initializer() else ""


def _leaf(graph: ir.Graph, before: ir.Node, x: ir.Value | None, name: str) -> ir.Value:
    outputs, inputs = (int(size) for size in graph.initializers[name].shape or ())  # type: ignore[arg-type]
    attributes: dict[str, str | int] = {"weight": name, "bias": "", "transposed": 0, "K": inputs, "N": outputs}
    leaf = ir.node("Linear", [x], attributes, domain=DOMAIN)
    graph.insert_before(before, leaf)
    return leaf.outputs[0]


def _swapped(graph: ir.Graph, before: ir.Node, value: ir.Value, axes: list[int]) -> ir.Value:
    """The value with its last two axes exchanged."""
    node = ir.node("Transpose", [value], {"perm": axes})
    node.outputs[0].type = value.type
    if value.shape is not None:
        node.outputs[0].shape = ir.Shape([value.shape[axis] for axis in axes])
    graph.insert_before(before, node)
    return node.outputs[0]


def _become(node: ir.Node, result: ir.Value) -> None:
    replace(node.outputs[0], result)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
