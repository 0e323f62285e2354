"""Bisection beyond the planted errors: sound graphs, and the causes that no exporter can plant."""

from __future__ import annotations

import numpy as np
import pytest

from tests.proof.conftest import Artifact
from tests.proof.planting import manifest_of
from truecast.checkpoint import open_checkpoint
from truecast.proof import Cause, Reference, bisect
from truecast.proof.bisect import Divergence, _Search, layer_number
from truecast.proof.causes import kernel_cause, relative_error
from truecast.proof.cuts import find_cuts, fitted
from truecast.proof.held import held_weights, load_graph
from truecast.proof.points import Limits, grid
from truecast.proof.recording import record

CASE = "gemma3_text"
POINTS = {"batch 2, new 17, past 0", "left padding", "holes in a past, then 9 new", "right padding"}


def search_in(folder_of: Artifact, case: str, precision: str, target: str) -> _Search:
    folder = folder_of(case, precision, target)
    manifest = manifest_of(folder)
    reference = Reference.build(open_checkpoint(manifest.source.path))
    reference.load_checkpoint()
    model = load_graph(folder, "model.onnx")
    weights = held_weights(model, manifest.weights, reference.sources)
    reference.load_held(weights)
    return _Search(folder, reference, manifest, model, weights)


@pytest.mark.parametrize(
    ("case", "precision", "target"),
    [
        (CASE, "fp32", "onnxruntime"),
        (CASE, "int4", "onnxruntime"),
        ("llama", "int4", "genai"),
        ("gpt2", "int4", "onnxruntime"),
    ],
)
def test_a_sound_graph_has_no_divergence_and_is_cut_everywhere(
    case: str, precision: str, target: str, made: Artifact
) -> None:
    search = search_in(made, case, precision, target)
    limits = Limits(search.manifest.graph.padding, False, 300, 128, (8,), (), 10**6, 4)
    points = [point for point in grid(limits)[0] if point.name in POINTS]
    assert bisect(search.folder, search.reference, search.manifest, [(point, 0) for point in points]) is None
    cuts = find_cuts(search.model, record(search.reference, points[0], 0), "lm_head")
    products = [node for node in search.model.graph if "MatMul" in node.op_type]
    assert {node.outputs[0].name for node in products} <= {cut.value for cut in cuts}
    attention = [node for node in search.model.graph if node.op_type == "GroupQueryAttention"]
    assert {node.outputs[0].name for node in attention} <= {cut.value for cut in cuts}


def test_a_kernel_is_blamed_where_the_specification_agrees_with_the_author() -> None:
    single, half = np.zeros(1, np.float32), np.zeros(1, np.float16)
    assert kernel_cause(single, 1e-2, 1e-7)[0] is Cause.KERNEL
    assert kernel_cause(single, 1e-2, 1e-2)[0] is Cause.CONVERTER
    assert kernel_cause(single, 1e-2, None)[0] is Cause.CONVERTER
    assert kernel_cause(half, 1e-3, 1e-7)[0] is Cause.PRECISION
    assert kernel_cause(half, 1e-1, 1e-7)[0] is Cause.KERNEL


def test_padding_is_left_out_of_an_error_in_every_layout() -> None:
    real = np.array([[True, False, True], [True, True, True]])
    want = np.ones((2, 3, 4), np.float32)
    got = want.copy()
    got[0, 1] = 9
    assert relative_error(got, want, real) == 0
    assert relative_error(got.reshape(6, 4), want.reshape(6, 4), real) == 0
    heads = np.repeat(got[:, None], 5, 1)
    assert relative_error(heads, np.ones_like(heads), real) == 0
    got[1, 0, 2] = np.nan
    assert relative_error(got, want, real) == np.inf
    assert relative_error(got[:, :2], want, real) == np.inf


def test_the_authors_array_is_laid_out_as_the_graphs() -> None:
    heads = np.random.default_rng(0).standard_normal((2, 3, 5, 4))
    flat = heads.transpose(0, 2, 1, 3).reshape(2, 5, 12)
    assert np.array_equal(fitted(heads, flat.shape, flat), flat)  # type: ignore[arg-type]
    square = np.random.default_rng(0).standard_normal((2, 3, 3, 4))
    swapped = square.transpose(0, 2, 1, 3)
    assert np.array_equal(fitted(square, square.shape, swapped), swapped)  # type: ignore[arg-type]
    assert fitted(heads, (7, 7), np.zeros((7, 7))) is None


def test_a_divergence_is_one_sentence() -> None:
    found = Divergence(3, "n", Cause.KERNEL, "why")
    assert str(found) == "First divergence: layer 3, node 'n' (kernel): why."
    assert layer_number("model.layers.12/Add_1") == 12 and layer_number("model.norm") is None
