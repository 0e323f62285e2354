"""Which values of a graph are of 16 bits, and casts put where they are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from truecast.diagnosis.inference import infer_types
from truecast.diagnosis.schemas import standard

WIDE = ir.DataType.FLOAT


def all_nodes(model: ir.Model) -> list[ir.Node]:
    """Every node in the order of execution, those of subgraphs after the node that holds them."""
    return list(ir.traversal.RecursiveGraphIterator(model.graph))


def dtypes(model: ir.Model, nodes: Sequence[ir.Node]) -> dict[ir.Value, ir.DataType]:
    """The dtype of every value, by the operators' schemas; results of branches and loops are given their type."""
    opsets = {standard(domain): version for domain, version in model.opset_imports.items()}
    while True:
        types = infer_types(nodes, opsets)
        types |= {value: value.dtype for value in model.graph.inputs if value.dtype is not None}
        found = [(mine, types[body]) for mine, body in _handed_out(nodes) if mine not in types and body in types]
        if not found:
            return types
        for value, dtype in found:
            value.type = ir.TensorType(dtype)


BODIES = {"If": ("then_branch", 0), "Loop": ("body", 1), "Scan": ("body", 0)}
"""Operators that run a graph: the attribute that holds it, and how many of its outputs come before what they give."""


def _handed_out(nodes: Sequence[ir.Node]) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Results of branches and loops, each with the output of the inner graph that it is made of."""
    for node in nodes:
        if node.op_type in BODIES:
            name, skipped = BODIES[node.op_type]
            yield from zip(node.outputs, node.attributes[name].as_graph().outputs[skipped:], strict=False)


def computed(nodes: Sequence[ir.Node]) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Every value that a node other than a constant gives, with its node."""
    yield from ((node, value) for node in nodes if node.op_type != "Constant" for value in node.outputs)


def cast_behind(model: ir.Model, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
    """`value` cast to `dtype`, right behind the node that gives it, or before all nodes."""
    node = ir.node("Cast", [value], {"to": dtype}, name=name)
    result = node.outputs[0]
    result.name, result.type, result.shape = name, ir.TensorType(dtype), value.shape
    producer = value.producer()
    if producer is not None:
        assert producer.graph is not None
        producer.graph.insert_after(producer, node)
    elif len(model.graph):
        model.graph.insert_before(model.graph[0], node)
    else:
        model.graph.append(node)
    return result


def producer_of(value: ir.Value) -> ir.Node:
    """The node that gives a value, which has one."""
    node = value.producer()
    assert node is not None
    return node


def read_instead(value: ir.Value, by: ir.Value) -> None:
    """Whoever reads `value` reads `by`, which is made of it, and so does the graph where it is an output."""
    for node, index in list(value.uses()):
        if node is not by.producer():
            node.replace_input_with(index, by)
    give_instead(value, by)


def give_instead(value: ir.Value, by: ir.Value) -> None:
    """Where `value` is an output of its graph, `by` is, under its name."""
    producer = value.producer()
    outputs = producer.graph.outputs if producer is not None and producer.graph is not None else []
    for index, output in enumerate(outputs):
        if output is value:
            by.name, value.name = value.name, by.name
            outputs[index] = by
