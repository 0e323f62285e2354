"""Canonical order and names depend on the graph alone, not on how a trace built it."""

from __future__ import annotations

import random

import onnx.parser
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from truecast.trace.naming import canonical

GRAPH = """
<ir_version: 10, opset_import: ["": 21]>
g (float[N, 4] x) => (float[N, 4] y, float[N, 4] present)
<float[4] layers__0__norm__weight = {1, 1, 1, 1}, float[4] layers__1__norm__weight = {1, 1, 1, 1},
 float[4, 4] layers__1__proj__weight = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}>
{
    a = Abs (x)
    b = LayerNormalization <axis = -1> (a, layers__0__norm__weight)
    layers__0__proj = Exp (b)
    present = Neg (layers__0__proj)
    layers__0 = Add (layers__0__proj, a)
    c = LayerNormalization <axis = -1> (layers__0, layers__1__norm__weight)
    d = MatMul (c, layers__1__proj__weight)
    e = Add (d, layers__0)
    unused = Exp (e)
    f = Add (e, d)
    y = Sqrt (f)
}
"""
"""With `__` for the dots of names, which the text format does not take."""


def parsed() -> ir.Model:
    model = ir.from_proto(onnx.parser.parse_model(GRAPH))
    for value in (*model.graph.initializers.values(), *(x for node in model.graph for x in node.outputs)):
        value.name = (value.name or "").replace("__", ".")
    return model


def shuffled(seed: int) -> ir.Model:
    """The graph with its nodes in another valid order, and other names for values without one of their own."""
    numbers, model = random.Random(seed), parsed()
    nodes, order, ready = list(model.graph), [], set[ir.Value]()
    while nodes:
        free = [n for n in nodes if all(x is None or x.producer() is None or x in ready for x in n.inputs)]
        order.append(numbers.choice(free))
        nodes.remove(order[-1])
        ready |= set(order[-1].outputs)
    for number, node in enumerate(order):
        model.graph.remove(node)
        model.graph.append(node)
        node.name = f"n{number}"
        value = node.outputs[0]
        if not value.is_graph_output() and "." not in (value.name or ""):
            value.name = f"v{number}"
    return model


def canonical_bytes(model: ir.Model) -> bytes:
    canonical(model)
    return ir.to_proto(model).SerializeToString()


@settings(max_examples=30, deadline=None)
@given(st.integers())
def test_any_order_and_any_names_give_the_same_bytes(seed: int) -> None:
    assert canonical_bytes(shuffled(seed)) == canonical_bytes(shuffled(0))


def names() -> list[str | None]:
    model = shuffled(1)
    canonical(model)
    return [node.name for node in model.graph]


def test_values_are_named_by_module_or_by_layer_and_operator() -> None:
    assert names() == [
        "Abs_1",
        "layers.0.norm",
        "layers.0.proj",
        "layers.0",
        "layers.1.norm",
        "layers.1/MatMul_1",
        "layers.1/Add_1",
        "layers.1/Add_2",
        "y",
        "present",
    ]


def test_what_no_output_needs_is_gone() -> None:
    assert sum(name is not None and "Exp" in name for name in names()) == 0


def test_the_second_value_of_one_name_gets_another() -> None:
    model = shuffled(2)
    for node in model.graph:
        if node.op_type == "MatMul":
            node.outputs[0].name = "layers.0.proj"
    canonical(model)
    found = [node.name for node in model.graph]
    assert len(found) == len(set(found))
