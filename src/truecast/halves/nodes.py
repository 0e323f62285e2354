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
    """The dtype of every value, by the operators' schemas."""
    types = infer_types(nodes, {standard(domain): version for domain, version in model.opset_imports.items()})
    return types | {value: value.dtype for value in model.graph.inputs if value.dtype is not None}


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


def read_instead(value: ir.Value, by: ir.Value, spared: ir.Node) -> None:
    """Whoever reads `value` reads `by`, as an output of the graph under its name; `spared` goes on reading `value`."""
    for node, index in list(value.uses()):
        if node is not spared:
            node.replace_input_with(index, by)
    graphs = [value.producer().graph] if value.producer() is not None else []  # type: ignore[union-attr]
    for graph in graphs:
        for index, output in enumerate(graph.outputs if graph is not None else ()):
            if output is value:
                assert graph is not None
                by.name, value.name = value.name, by.name
                graph.outputs[index] = by
