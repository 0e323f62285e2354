"""Products with a weight that the trace met outside of a linear leaf become such leaves, so that packing sees them.

`torch.nn.functional.linear` on a parameter, as torch's own MultiheadAttention does it, leaves MatMul or Gemm with an
initializer. Data flow: such a node → `truecast::Linear` that names the weight, and the bias where Gemm has one.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from truecast.dialects.expand import NodeWriter

MATRIX_RANK = 2
DOMAIN = "truecast"


@dataclass(frozen=True)
class _Found:
    """A weight in a product: `transposed` where it lies as [in, out]."""

    weight: ir.Value
    transposed: bool
    bias: ir.Value | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        """Width and outputs."""
        assert self.weight.shape is not None
        first, second = (int(size) for size in self.weight.shape.numpy())
        return (first, second) if self.transposed else (second, first)


def adopt_products(model: ir.Model) -> int:
    """Makes linear leaves of products with weights that are bound later; returns how many."""
    count = 0
    for node in list(model.graph):
        found = _found(node)
        if found is None:
            continue
        width, outputs = found.sizes
        attributes = {
            "weight": found.weight.name or "",
            "bias": (found.bias.name or "") if found.bias is not None else "",
            "transposed": int(found.transposed),
            "K": width,
            "N": outputs,
        }
        result = NodeWriter(node).op("Linear", [node.inputs[0]], attributes, domain=DOMAIN)
        old = node.outputs[0]
        result.shape, result.type, name = old.shape, old.type, old.name
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        inputs = list(node.inputs)
        model.graph.remove(node, safe=True)
        result.name = name
        for value in inputs[1:]:
            _forget(value, model.graph)
        count += 1
    return count


def _forget(value: ir.Value | None, graph: ir.Graph) -> None:
    """Drops a weight, and the swap of its axes, where nothing reads it any more: packing brings it back."""
    if value is None or value.uses() or value.is_graph_output():
        return
    node = value.producer()
    if node is None:
        graph.initializers.pop(value.name or "", None)
        return
    source = node.inputs[0]
    graph.remove(node, safe=True)
    _forget(source, graph)


def _found(node: ir.Node) -> _Found | None:
    """The weight of a product, if it is one parameter, whole."""
    if node.op_type == "MatMul":
        return _weight(node.inputs[1])
    if node.op_type != "Gemm" or any(
        name in node.attributes and node.attributes[name].value != plain
        for name, plain in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))
    ):
        return None
    turned = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    found = _weight(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if found is None or (bias is not None and not _is_bias(bias)):
        return None
    return _Found(found.weight, found.transposed != turned, bias)


def _weight(value: ir.Value | None) -> _Found | None:
    node = None if value is None else value.producer()
    swapped = node is not None and node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [1, 0]
    if node is not None and swapped:
        value = node.inputs[0]
    if value is None or not _is_bound_later(value) or value.shape is None or len(value.shape) != MATRIX_RANK:
        return None
    return _Found(value, not swapped)


def _is_bound_later(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is None


def _is_bias(value: ir.Value) -> bool:
    return _is_bound_later(value) and value.shape is not None and len(value.shape) == 1
