"""Errors in what a state space model carries from step to step: each is caught by a check that runs the graph."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import truecast
from tests.conformance.cases import BY_NAME
from tests.proof.planting import change_graph
from tests.tiny import tiny_checkpoint
from truecast.artifact import read_manifest
from truecast.checkpoint import open_checkpoint
from truecast.proof.parity import Subject, compare_all, parity_checks, reference_logits
from truecast.proof.points import Limits, Point, grid
from truecast.proof.reference import Reference
from truecast.proof.sessions import open_decoder

Change = Callable[[ir.Graph], None]


@dataclass(frozen=True)
class Opened:
    """A case's sound artifact, the author's model, and his logits at the points that the plants need."""

    folder: Path
    reference: Reference
    points: Sequence[Point]
    wanted: Mapping[str, Sequence[np.ndarray]]


@pytest.fixture(scope="module", params=["mamba", "mamba2"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder = tmp_path_factory.mktemp(request.param)
    source = tiny_checkpoint(BY_NAME[request.param], folder / "source")
    truecast.export(source, folder / "out", precision="fp32", verify=False)
    reference = Reference.build(open_checkpoint(source))
    reference.load_checkpoint()
    points = [point for point in grid(LIMITS)[0] if point.name in POINTS]
    return Opened(folder / "out", reference, points, {p.name: list(reference_logits(reference, p)) for p in points})


LIMITS = Limits("any", True, 257, None, (), (), 10**6, 1)
POINTS = ("batch 2, new 17, past 11", "left padding")


def scan(graph: ir.Graph) -> ir.Node:
    return next(node for node in graph if node.op_type == "Scan")


def stays(part: str) -> Change:
    """The first layer's state of that kind never changes."""

    def change(graph: ir.Graph) -> None:
        past = next(value for value in graph.inputs if value.name == f"past_{part}.0")
        index = next(i for i, value in enumerate(graph.outputs) if value.name == f"present_{part}.0")
        left = graph.outputs[index]
        same = ir.node("Identity", [past])
        same.outputs[0].shape, same.outputs[0].type = left.shape, left.type
        graph.append(same)
        name, left.name = left.name, "lost"
        same.outputs[0].name = name
        graph.outputs[index] = same.outputs[0]

    return change


def begins_anew(graph: ir.Graph) -> None:
    """Every run begins with a state of zeros, as an author's code for several positions does."""
    node = scan(graph)
    first = node.inputs[0]
    nothing = ir.node("Sub", [first, first])
    graph.insert_before(node, nothing)
    node.replace_input_with(0, nothing.outputs[0])


def inner(kind: str, by: str) -> Change:
    """Another operator inside the recurrence."""

    def change(graph: ir.Graph) -> None:
        body = scan(graph).attributes["body"].as_graph()
        node = next(node for node in body if node.op_type == kind)
        node.op_type = by

    return change


def drops_the_oldest_input(graph: ir.Graph) -> None:
    """The convolution sees nothing of the past."""
    past = next(value for value in graph.inputs if value.name == "past_conv.0")
    reader = next(iter(past.uses())).node
    nothing = ir.node("Sub", [past, past])
    graph.insert_before(reader, nothing)
    for use in list(past.uses()):
        if use.node is not nothing:
            use.node.replace_input_with(use.idx, nothing.outputs[0])


PLANTS: dict[str, Change] = {
    "a recurrent state that stays": stays("ssm"),
    "a convolution's state that stays": stays("conv"),
    "a recurrence that begins anew": begins_anew,
    "a sum that is a difference": inner("Add", "Sub"),
    "a convolution without a past": drops_the_oldest_input,
}


def found(opened: Opened, folder: Path) -> list[str]:
    """The names of the checks that fail of an artifact."""
    subject = Subject("as shipped", open_decoder(folder, read_manifest(folder).graph), tight=True)
    compare_all(opened.reference, [subject], opened.points, known=opened.wanted)
    return [check.name for check in parity_checks(subject, "the original") if not check.passed]


def test_a_sound_graph_is_the_author_step_by_step(opened: Opened) -> None:
    assert not found(opened, opened.folder)


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_error_is_caught(plant: str, opened: Opened, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(opened.folder, tmp_path / "out"))
    change_graph(folder, lambda model: PLANTS[plant](model.graph))
    assert found(opened, folder)
