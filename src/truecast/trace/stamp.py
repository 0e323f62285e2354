"""Stamping: every `truecast::Layer` becomes a copy of the layer it is like, under its own weight names."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from truecast.states import StateTensor
from truecast.trace.cleanup import replace
from truecast.trace.layers import ENTER, EXIT, LAYER


@dataclass(frozen=True)
class _Body:
    """The nodes of one traced layer, between its markers, in order; `parts` of its state end inputs and outputs."""

    nodes: list[ir.Node]
    inputs: list[ir.Value]
    outputs: list[ir.Value]
    parts: list[str]


def stamp(model: ir.Model, layers: str) -> None:
    """Replaces the markers of `layers` (the name of the module list) by nodes; the graph has no markers afterwards."""
    graph = model.graph
    marked: dict[str, dict[int, ir.Node]] = {kind: {} for kind in (ENTER, EXIT, LAYER)}
    for node in graph:
        if node.op_type in marked:
            marked[node.op_type][node.attributes["layer"].as_int()] = node
    bodies = {i: _body(marked[ENTER][i], leave, f"{layers}.{i}.") for i, leave in marked[EXIT].items()}
    for index, node in marked[LAYER].items():
        like = node.attributes["like"].as_int()
        _copy(graph, bodies[like], node, f"{layers}.{like}.", f"{layers}.{index}.")
    for index, leave in marked[EXIT].items():
        enter = marked[ENTER][index]
        _name_result(leave.inputs[0], f"{layers}.{index}")
        _bypass(graph, leave)
        _bypass(graph, enter)


def _name_result(value: ir.Value | None, name: str) -> None:
    """A layer's result carries the layer's name."""
    assert value is not None
    if not value.is_graph_output() and value.producer() is not None:
        value.name = name


def _bypass(graph: ir.Graph, node: ir.Node) -> None:
    for source, result in zip(node.inputs, node.outputs, strict=True):
        assert source is not None
        replace(result, source)
    graph.remove(node, safe=True)


def _body(enter: ir.Node, leave: ir.Node, prefix: str) -> _Body:
    """What lies between the markers and depends on the layer's inputs or on its own weights; the rest is shared."""
    own: dict[ir.Node, bool] = {}

    def depends(value: ir.Value | None) -> bool:
        if value is None:
            return False
        producer = value.producer()
        if producer is None:
            return (value.name or "").startswith(prefix)
        if producer is enter:
            return True
        if producer not in own:
            own[producer] = any(list(map(depends, producer.inputs)))  # visit them all
        return own[producer] or _names_weight(producer, prefix)

    for value in leave.inputs:
        depends(value)
    graph = leave.graph
    assert graph is not None
    nodes = [node for node in graph if own.get(node) or (node in own and _names_weight(node, prefix))]
    pasts = (StateTensor.named(value.name) for value in enter.inputs if value is not None)
    parts = [state.part for state in pasts if state is not None]
    return _Body(nodes, list(enter.outputs), [v for v in leave.inputs if v is not None], parts)


def _names_weight(node: ir.Node, prefix: str) -> bool:
    return any(a.type == ir.AttributeType.STRING and a.as_string().startswith(prefix) for a in node.attributes.values())


def _copy(graph: ir.Graph, body: _Body, place: ir.Node, old: str, new: str) -> None:
    """Copies the body in front of `place`, a Layer node, and lets the copies stand in for its outputs."""
    values: dict[ir.Value, ir.Value] = dict(zip(body.inputs, place.inputs))  # type: ignore[arg-type]  # noqa: B905
    index = place.attributes["layer"].as_int()
    for part, past in zip(body.parts, body.inputs[len(place.inputs) :], strict=True):
        values[past] = ir.Value(name=StateTensor(index, part).past, shape=past.shape, type=past.type)
        graph.inputs.append(values[past])

    def mapped(value: ir.Value | None) -> ir.Value | None:
        if value is None or value in values:
            return None if value is None else values[value]
        if value.producer() is None and (value.name or "").startswith(old):
            values[value] = _twin_weight(graph, value, old, new)
            return values[value]
        return value

    for node in body.nodes:
        outputs = [ir.Value(shape=v.shape, type=v.type) for v in node.outputs]
        copy = ir.Node(
            node.domain,
            node.op_type,
            [mapped(x) for x in node.inputs],
            [_renamed(a, old, new) for a in node.attributes.values()],
            outputs=outputs,
            version=node.version,
            metadata_props=dict(node.metadata_props),
        )
        values.update(zip(node.outputs, outputs, strict=True))
        graph.insert_before(place, copy)
    _name_result(mapped(body.outputs[0]), new.removesuffix("."))
    results = [mapped(source) for source in body.outputs]
    for result, replacement in zip(place.outputs, results):  # noqa: B905 - the rest is the present
        assert replacement is not None
        replace(result, replacement)
    for part, present in zip(body.parts, results[len(place.outputs) :], strict=True):
        assert present is not None
        present.name = StateTensor(index, part).present
        graph.outputs.append(present)
    graph.remove(place, safe=True)


def sort_cache(model: ir.Model) -> None:
    """Orders past inputs and present outputs by layer."""
    graph = model.graph

    for values in (graph.inputs, graph.outputs):
        values[:] = sorted(values, key=lambda value: StateTensor.named(value.name) or StateTensor(-1, ""))


def _renamed(attribute: ir.Attr, old: str, new: str) -> ir.Attr:
    if attribute.type == ir.AttributeType.STRING and attribute.as_string().startswith(old):
        return ir.AttrString(attribute.name, new + attribute.as_string().removeprefix(old))
    return attribute


def _twin_weight(graph: ir.Graph, value: ir.Value, old: str, new: str) -> ir.Value:
    name = new + (value.name or "").removeprefix(old)
    if name not in graph.initializers:
        twin = ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
        graph.initializers.add(twin)
    return graph.initializers[name]
