"""Graphs and manifests that are wrong in any way: the proof ends with a verdict, never with a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.proof.conftest import Artifact
from tests.proof.planting import DATA, GRAPH, change_graph, change_manifest, failed
from truecast.artifact import GraphInfo, Status, read_manifest
from truecast.proof import running, verify
from truecast.proof.points import Limits, Point, grid

Break = Callable[[Path], None]


@pytest.fixture(autouse=True)
def one_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """How much of the grid is run does not matter here."""

    def few(limits: Limits) -> tuple[list[Point], list[str]]:
        points, notes = grid(limits)
        return [points[0], *[point for point in points if point.text][:1]], notes

    monkeypatch.setattr(running, "grid", few)


def graph(change: Callable[[ir.Model], object]) -> Break:
    return lambda folder: change_graph(folder, lambda model: change(model) and None)


def manifest(**fields: Any) -> Break:
    return lambda folder: change_manifest(folder, **fields)


def stated(change: Callable[[GraphInfo], dict[str, Any]]) -> Break:
    """Changes what the manifest says of the graph."""

    def spoil(folder: Path) -> None:
        info = read_manifest(folder).graph
        change_manifest(folder, graph=info.model_copy(update=change(info)))

    return spoil


def of_weights(**fields: Any) -> Break:
    def spoil(folder: Path) -> None:
        listed = read_manifest(folder).weights
        change_manifest(folder, weights=[info.model_copy(update=fields) for info in listed])

    return spoil


def no_outputs(model: ir.Model) -> None:
    model.graph.outputs.clear()


def shapeless(model: ir.Model) -> None:
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = None


def renamed(model: ir.Model) -> None:
    for value in model.graph.inputs:
        value.name = f"x_{value.name}"


def passed_on(model: ir.Model) -> None:
    """The inputs go through another node before anything reads them."""
    for value in list(model.graph.inputs):
        uses = [(use.node, use.idx) for use in value.uses()]
        node = ir.node("Identity", [value], name=f"passed_{value.name}")
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = node.name, value.shape, value.type
        model.graph.insert_before(model.graph[0], node)
        for user, index in uses:
            user.replace_input_with(index, node.outputs[0])


def no_attributes(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type != "Constant":
            node.attributes.clear()


def small(model: ir.Model) -> None:
    """The first weight is a single number."""
    name, value = next(
        (n, v) for n, v in model.graph.initializers.items() if isinstance(v.const_value, ir.ExternalTensor)
    )
    value.const_value = ir.tensor(np.float32(1), name=name)


def short_tables(model: ir.Model) -> None:
    for name, value in model.graph.initializers.items():
        if ("cos" in name or "sin" in name) and value.const_value is not None:
            rows = value.const_value.numpy()[:5]
            value.const_value, value.shape = ir.tensor(rows, name=name), ir.Shape(rows.shape)


def vast(model: ir.Model) -> None:
    shape = model.graph.outputs[0].shape
    assert shape is not None
    model.graph.outputs[0].shape = ir.Shape([*shape[:-1], 10**12])


def negative(model: ir.Model) -> None:
    model.graph.inputs[0].shape = ir.Shape([-3, -5])


def cut_off(folder: Path) -> None:
    (folder / DATA).write_bytes((folder / DATA).read_bytes()[:100])


def emptied(folder: Path) -> None:
    (folder / GRAPH).write_bytes(b"")


BOTH: dict[str, Break] = {
    "no outputs": graph(no_outputs),
    "no shapes": graph(shapeless),
    "inputs renamed": graph(renamed),
    "no attributes": graph(no_attributes),
    "negative sizes": graph(negative),
    "vocabulary of 1e12 in the graph": graph(vast),
    "an empty graph": emptied,
    "a data file that was cut off": cut_off,
    "no inputs stated": stated(lambda info: {"inputs": []}),
    "no sizes stated": stated(lambda info: {"inputs": [i.model_copy(update={"shape": []}) for i in info.inputs]}),
    "dtypes unknown": stated(lambda info: {"inputs": [i.model_copy(update={"dtype": "x"}) for i in info.inputs]}),
    "optimization unknown": stated(lambda info: {"optimization": "x", "session_entries": {"x": "y"}}),
    "dialect and target unknown": manifest(dialect="x", target="x"),
    "settings unknown": manifest(settings={"keep": ["x"], "method": 7, "largest_code": "x"}),
    "weights without initializers": of_weights(initializers=[]),
    "weights of other tensors": of_weights(sources=["x"]),
}
ALIKE = ("no attributes", "negative sizes", "vocabulary of 1e12 in the graph", "no sizes stated", "dtypes unknown")
"""What the checks of decoders look at with the same code."""
DECODERS: dict[str, Break] = {
    **BOTH,
    "a weight that is one number": graph(small),
    "tables shorter than the context": graph(short_tables),
    "vocabulary of 1e12": stated(lambda info: {"vocab_size": 10**12}),
    "a context of 3": stated(lambda info: {"context_length": 3}),
    "a negative context": stated(lambda info: {"context_length": -5}),
}


def faults(folder: Path) -> set[str]:
    """The checks that fail, beside that of the files' hashes: it would hide what the others do not see."""
    certificate = verify(folder)
    assert certificate.status is Status.FAILED
    return failed(certificate).keys() - {"files of the artifact"}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_that_is_broken_fails(name: str, made: Artifact, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("llama", "fp32", "genai"), tmp_path / "artifact"))
    DECODERS[name](folder)
    assert faults(folder)


def test_a_decoder_whose_inputs_pass_another_node_is_the_same_model(made: Artifact, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("llama", "fp32", "genai"), tmp_path / "artifact"))
    graph(passed_on)(folder)
    assert not faults(folder)


@pytest.mark.parametrize("name", [name for name in BOTH if name not in ALIKE])
def test_a_module_that_is_broken_fails(name: str, made_classifier: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made_classifier("int8-dynamic"), tmp_path / "artifact"))
    BOTH[name](folder)
    assert faults(folder)
