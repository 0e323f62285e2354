"""Other ways to run the same graph: each check on a graph, or a run, that breaks it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.proof.conftest import Artifact
from tests.proof.planting import change_graph, failed, manifest_of, reprove
from truecast.proof.parity import RELATIVE, graph_logits
from truecast.proof.points import Limits, Point, grid
from truecast.proof.sessions import open_decoder
from truecast.proof.variants import _same, plain_logits

CASE = "gemma3_text"


@pytest.fixture
def point() -> Point:
    return next(p for p in grid(Limits("any", False, 300, 128, (), (), 10**6, 4))[0] if p.name == "left padding")


def test_a_wrong_default_number_of_logits_is_caught(spoilable: Artifact) -> None:
    def spoil(model: ir.Model) -> None:
        model.graph.initializers["num_logits_to_keep"].const_value = ir.tensor(np.array(2), name="num_logits_to_keep")

    folder = spoilable(CASE, "fp32")
    change_graph(folder, spoil)
    found = failed(reprove(folder))
    assert list(found) == ["default logits"]
    assert "shape" in found["default logits"].detail


def test_two_runs_that_differ_are_caught(made: Artifact, point: Point) -> None:
    folder = made(CASE, "fp32")
    decoder = open_decoder(folder, manifest_of(folder).graph)
    same = _same("n", decoder, graph_logits(decoder, point), point, RELATIVE)
    other = (logits * (1 + 3 * RELATIVE) for logits in graph_logits(decoder, point))
    assert same.passed and same.measured == 0
    assert not _same("n", decoder, other, point, RELATIVE).passed


def test_plain_arrays_go_through_the_graph_as_the_runtimes_buffers_do(made: Artifact, point: Point) -> None:
    folder = made(CASE, "int4")
    decoder = open_decoder(folder, manifest_of(folder).graph)
    for plain, bound in zip(plain_logits(decoder, point), graph_logits(decoder, point), strict=True):
        np.testing.assert_allclose(plain, bound, atol=1e-5)


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_exact_products_are_those_of_float_activations(precision: str, made: Artifact, point: Point) -> None:
    """The switch has an effect: as shipped, the same graph gives other numbers."""
    folder = made(CASE, precision)
    info = manifest_of(folder).graph
    exact, shipped = (list(graph_logits(open_decoder(folder, info, exact=e), point)) for e in (True, False))
    assert max(np.abs(a - b).max() for a, b in zip(exact, shipped, strict=True)) > 1e-3
