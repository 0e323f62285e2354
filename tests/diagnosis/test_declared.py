"""What a file declares of its values: an error where ONNX Runtime refuses the file for it, and only there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.hazards.building import WIDTH, chain, linear, loads, model, node, rows, save, tensor, weight
from truecast.diagnosis import Severity, diagnose

FLOAT, HALF, LONG = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
FLAG = tensor("flag", [], TensorProto.BOOL)


def declared(made: onnx.ModelProto, *infos: onnx.ValueInfoProto) -> onnx.ModelProto:
    made.graph.value_info.extend(infos)
    return made


def listed(*values: onnx.ValueInfoProto, ir_version: int = 10) -> onnx.ModelProto:
    """A model with its weight among the inputs, as all had to be up to IR 3."""
    made = linear(opset=8, ir_version=ir_version)
    made.graph.input.extend(values)
    return made


def result(dtype: int | None) -> onnx.ModelProto:
    """The output declared with a data type, none of them, or without a type."""
    made = linear()
    made.graph.output[0].type.tensor_type.elem_type = dtype or 0
    if dtype is None:
        made.graph.output[0].ClearField("type")
    return made


def untyped_input() -> onnx.ModelProto:
    made = linear()
    made.graph.input[0].ClearField("type")
    return made


def sequence(output: onnx.ValueInfoProto) -> onnx.ModelProto:
    return model([node("SplitToSequence", ["x"], ["y"], axis=0)], [rows()], [output])


def branches(first: int, second: int, declares: int = FLOAT) -> onnx.ModelProto:
    """An If whose branches cast to two data types; `declares` is what the first branch says of its result."""
    ends = [("a", first, declares), ("b", second, second)]
    then, other = (
        helper.make_graph([node("Cast", ["x"], [name], to=kind)], name, [], [tensor(name, None, says)])
        for name, kind, says in ends
    )
    chosen = node("If", ["flag"], ["y"], then_branch=then, else_branch=other)
    return model([chosen], [rows(), FLAG], [rows("y")])


def loop(state: int) -> onnx.ModelProto:
    """A Loop whose body declares its state as another data type than it is given."""
    ends = (
        [tensor("i", [], LONG), FLAG, tensor("s", None, state)],
        [tensor("go", [], TensorProto.BOOL), rows("t", state)],
    )
    body = helper.make_graph([node("Identity", ["flag"], ["go"]), node("Identity", ["s"], ["t"])], "body", *ends)
    again = node("Loop", ["times", "flag", "x"], ["y"], body=body)
    return model([again], [rows(), FLAG, tensor("times", [], LONG)], [rows("y")])


def function(outer: int, inner: int) -> onnx.ModelProto:
    """A call of a function whose value is declared outside and inside of it."""
    body = helper.make_function("own", "F", ["a"], ["b"], [node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 20)])
    body.value_info.append(tensor("b", None, inner))
    made = declared(chain([node("own.F", ["x"], ["n"])], "n"), tensor("n", None, outer))
    made.functions.append(body)
    return made


def small_constant(dtype: int) -> onnx.ModelProto:
    one = node("Constant", [], ["k"], value=helper.make_tensor("", FLOAT, [1], [1.0]))
    return declared(chain([one, node("Add", ["x", "k"], ["n"])], "n"), tensor("k", [1], dtype))


MADE: dict[str, Callable[[], onnx.ModelProto]] = {
    "half in value_info": lambda: declared(chain([node("Relu", ["x"], ["n"])], "n"), tensor("n", None, HALF)),
    "no data type in value_info": lambda: declared(chain([node("Relu", ["x"], ["n"])], "n"), tensor("n", None, 0)),
    "integer output": lambda: result(LONG),
    "output without a data type": lambda: result(0),
    "output without a type": lambda: result(None),
    "input without a type": untyped_input,
    "weight listed as half": lambda: listed(tensor("w", [WIDTH, WIDTH], HALF)),
    "weight listed as half, IR 3": lambda: listed(tensor("w", [WIDTH, WIDTH], HALF), ir_version=3),
    "weight listed too wide": lambda: listed(tensor("w", [WIDTH, WIDTH + 1])),
    "weight listed with names": lambda: listed(tensor("w", ["rows", "columns"])),
    "weight of other value_info": lambda: declared(linear(), tensor("w", [WIDTH + 1, 3], LONG)),
    "tensor for a sequence": lambda: sequence(rows("y")),
    "sequence of integers": lambda: sequence(helper.make_tensor_sequence_value_info("y", LONG, None)),
    "sequence": lambda: sequence(helper.make_tensor_sequence_value_info("y", FLOAT, None)),
    "unequal branches": lambda: branches(FLOAT, LONG),
    "branch declared as integers": lambda: branches(FLOAT, FLOAT, LONG),
    "equal branches": lambda: branches(FLOAT, FLOAT),
    "state of a loop": lambda: loop(LONG),
    "right state of a loop": lambda: loop(FLOAT),
    "result of a function": lambda: function(LONG, FLOAT),
    "inside of a function": lambda: function(FLOAT, LONG),
    "constant": lambda: small_constant(LONG),
    "operator that cannot take the shape": lambda: model(
        [node("MatMul", ["x", "w"], ["y"])], [rows()], [rows("y")], [weight("w", WIDTH + 1, WIDTH)]
    ),
    "other shape in value_info": lambda: declared(chain([node("Relu", ["x"], ["n"])], "n"), tensor("n", ["batch", 3])),
}


@pytest.mark.parametrize("name", MADE)
def test_what_the_runtime_refuses_is_an_error_and_what_it_loads_is_none(name: str, tmp_path: Path) -> None:
    path = save(MADE[name](), tmp_path)
    errors = [finding.code for finding in diagnose(path).findings if finding.severity is Severity.ERROR]
    assert errors == ([] if loads(path) else ["TC305" if "shape" in name else "TC407"])


def test_the_declaration_and_what_is_made_are_named(tmp_path: Path) -> None:
    path = save(MADE["half in value_info"](), tmp_path)
    assert diagnose(path).findings[0].nodes == ("n of Relu Relu_n (declared float16, made float)",)
    path = save(MADE["state of a loop"](), tmp_path)
    (named,) = diagnose(path).findings[0].nodes
    assert "Loop" in named
    assert "float, declared int64" in named
