"""Outputs whose weights a checkpoint lacks are left out, and only those."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from truecast.trace.outputs import drop_outputs


def graph() -> ir.Model:
    """y = x·W₁; z = y·W₂, an abstract operator that names its weight; w = y + b, an initializer without data."""
    shape = ir.Shape([2, 2])
    x = ir.Input("x", shape, ir.TensorType(ir.DataType.FLOAT))
    bias = ir.Value(name="b", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    y = ir.node("Linear", [x], attributes={"weight": "first.weight", "bias": ""}, domain="truecast", name="first")
    z = ir.node("Linear", y.outputs, attributes={"weight": "second.weight"}, domain="truecast", name="second")
    w = ir.node("Add", [y.outputs[0], bias], name="third")
    for node, name in ((y, "y"), (z, "z"), (w, "w")):
        node.outputs[0].name = name
    outputs = [node.outputs[0] for node in (y, z, w)]
    made = ir.Graph([x], outputs, nodes=[y, z, w], initializers=[bias], opset_imports={"": 21}, name="g")
    return ir.Model(made, ir_version=10)


def names(model: ir.Model) -> list[str | None]:
    return [value.name for value in model.graph.outputs]


ALL = {"first.weight", "second.weight", "b"}


def test_a_whole_checkpoint_keeps_every_output() -> None:
    model = graph()
    assert drop_outputs(model, ALL.__contains__) == []
    assert names(model) == ["y", "z", "w"]


@pytest.mark.parametrize(("missing", "gone", "node"), [("second.weight", "z", "second"), ("b", "w", "third")])
def test_an_output_goes_with_its_weight(missing: str, gone: str, node: str) -> None:
    model = graph()
    notices = drop_outputs(model, (ALL - {missing}).__contains__)
    assert notices == [f"The output {gone} is left out: the checkpoint has no {missing}."]
    assert names(model) == [name for name in ("y", "z", "w") if name != gone]
    assert node not in [it.name for it in model.graph]


def test_all_stay_where_none_would_be_left() -> None:
    model = graph()
    assert drop_outputs(model, (ALL - {"first.weight"}).__contains__) == []
    assert names(model) == ["y", "z", "w"]
