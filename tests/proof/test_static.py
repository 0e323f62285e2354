"""Tier 1, the graph: each check on a graph that breaks it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from tests.proof.conftest import Artifact
from tests.proof.planting import change_graph, failed, manifest_of, node_of, reprove
from truecast.artifact import Check
from truecast.checkpoint import open_checkpoint
from truecast.proof.held import load_graph
from truecast.proof.static import _state_faults, graph_checks, kernel_check
from truecast.states import StateTensor

CASE = "gemma3_text"


def faults(folder_of: Artifact, spoil: Callable[[ir.Model], None]) -> dict[str, Check]:
    """The checks that a spoilt graph fails."""
    folder = folder_of(CASE, "fp32")
    manifest = manifest_of(folder)
    model = load_graph(folder, "model.onnx")
    spoil(model)
    checks = graph_checks(model, manifest, open_checkpoint(manifest.source.path).config)
    return {check.name: check for check in checks if not check.passed}


def insert(model: ir.Model, node: ir.Node, into: str, index: int) -> None:
    """Puts a node in front of input `index` of another."""
    target = node_of(model, into)
    node.outputs[0].name = "inserted"
    model.graph.insert_before(target, node)
    target.replace_input_with(index, node.outputs[0])


def test_a_sound_graph_has_no_faults(made: Artifact) -> None:
    assert not faults(made, lambda model: None)


def test_a_newer_opset_is_refused(made: Artifact) -> None:
    found = faults(made, lambda model: model.opset_imports.update({"": 27}))
    assert found["opset"].measured == 27 and found["opset"].limit == 26


def test_a_newer_ir_is_refused(made: Artifact) -> None:
    def spoil(model: ir.Model) -> None:
        model.ir_version = 14

    assert "IR version" in faults(made, spoil)


@pytest.mark.parametrize("how", ["constant", "cast"])
def test_float64_is_found(how: str, made: Artifact) -> None:
    def spoil(model: ir.Model) -> None:
        if how == "constant":
            node = ir.node("Constant", [], {"value": ir.tensor(np.ones(3, np.float64))})
        else:
            node = ir.node("Cast", [node_of(model, "logits").inputs[0]], {"to": ir.DataType.DOUBLE})
        insert(model, node, "logits", 0)

    assert faults(made, spoil)["float64 tensors"].measured == 1


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("input_ids", ["batch_size", 17]),
        ("attention_mask", ["batch_size", "length"]),
        ("past_key_values.1.key", ["batch_size", 2, "total_sequence_length", 32]),
        ("past_key_values.0.value", [3, 2, "past_sequence_length", 32]),
    ],
)
def test_an_axis_that_is_fixed_or_named_otherwise_is_found(name: str, shape: list[int | str], made: Artifact) -> None:
    def spoil(model: ir.Model) -> None:
        next(value for value in model.graph.inputs if value.name == name).shape = ir.Shape(shape)

    found = faults(made, spoil)
    assert name in found["dynamic axes"].detail
    assert name in found["interface as in the manifest"].detail


def test_an_input_outside_the_contract_is_found(made: Artifact) -> None:
    def spoil(model: ir.Model) -> None:
        model.graph.inputs.append(ir.Value(name="extra", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT)))

    assert "extra" in faults(made, spoil)["dynamic axes"].detail


def test_a_size_of_the_trace_in_a_shape_is_found(made: Artifact) -> None:
    def spoil(model: ir.Model) -> None:
        target = ir.node("Constant", [], {"value": ir.tensor(np.array([0, 17, -1]))})
        node = node_of(model, "logits")
        model.graph.insert_before(node, target)
        reshape = ir.node("Reshape", [node.inputs[0], target.outputs[0]], name="baked")
        insert(model, reshape, "logits", 0)

    assert "baked" in faults(made, spoil)["sizes of the trace in shapes"].detail


def test_an_operator_without_a_kernel_ends_the_proof(spoilable: Artifact) -> None:
    def spoil(model: ir.Model) -> None:
        node = node_of(model, "logits")
        insert(model, ir.node("NoSuchOperator", [node.inputs[0]], domain="com.microsoft", name="odd"), "logits", 0)

    folder = spoilable(CASE, "fp32")
    change_graph(folder, spoil)
    certificate = reprove(folder)
    assert "does not load" in failed(certificate)["kernels"].detail
    assert not [check for check in certificate.checks if check.tier == "parity"]


def test_operators_that_run_as_their_parts_are_named(spoilable: Artifact) -> None:
    folder = spoilable(CASE, "fp32")
    model = load_graph(folder, "model.onnx")
    swish = ir.node("Mish", [node_of(model, "logits").inputs[0]], name="mish")
    insert(model, swish, "logits", 0)
    ir.save(model, folder / "model.onnx")
    check = kernel_check(folder, load_graph(folder, "model.onnx"), "model.onnx")
    assert check.passed and "Mish" in check.detail


@pytest.mark.parametrize(
    ("name", "shape", "sound"),
    [
        ("past_conv.0", ["batch_size", 112, 4], True),
        ("present_ssm.3", ["batch_size", 8, 16, 8], True),
        ("past_key_values.1.key", ["batch_size", 2, "past_sequence_length", 16], True),
        ("past_conv.0", ["batch_size", 112, "past_sequence_length"], False),
        ("past_conv.0", [3, 112, 4], False),
        ("present_ssm.3", ["batch_size", None, 8], False),
        ("past_key_values.1.key", ["batch_size", 2, "total_sequence_length", 16], False),
        ("present.1.value", ["batch_size", 2, 28, 16], False),
    ],
)
def test_only_what_may_grow_has_a_free_axis(name: str, shape: list[int | str | None], sound: bool) -> None:
    state = StateTensor.named(name)
    assert state is not None
    assert (not [*_state_faults(ir.Value(name=name, shape=ir.Shape(shape)), state)]) is sound
