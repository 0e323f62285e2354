"""Made-up inputs: values that the names of inputs ask for, several sizes in turn, and what cannot be made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from tests.hazards.building import WIDTH, constant, layer, model, node, rows, save, tensor, weight
from truecast.diagnosis import diagnose
from truecast.diagnosis.feeds import Sizes, make_feeds
from truecast.diagnosis.observing import Subject, observe


@dataclass(frozen=True)
class Fake:
    """An input as a session describes it."""

    name: str
    shape: Sequence[int | str | None]
    type: str = "tensor(int64)"


IDS = Fake("input_ids", ["batch", "length"])
SOUND = Fake("audio", ["batch", "samples"], "tensor(float)")


@pytest.mark.parametrize(
    ("value", "beside", "wanted"),
    [
        (Fake("input_lengths", ["batch"]), IDS, [7, 7]),
        (Fake("xlens", [None]), SOUND, [512, 512]),
        (Fake("sr", []), SOUND, 16000),
        (Fake("sample_rate", [1]), SOUND, [16000]),
        (Fake("length_scale", [1], "tensor(float)"), IDS, [1]),
        (Fake("scale_factor", [None, 2], "tensor(float)"), IDS, [[1, 1], [1, 1]]),
        (Fake("im_shape", [None, 2], "tensor(float)"), IDS, [[64, 64], [64, 64]]),
        (Fake("attention_mask", ["batch", "length"]), IDS, [[1] * 7] * 2),
        (Fake("position_ids", ["batch", "length"]), IDS, [list(range(7))] * 2),
        (Fake("use_cache_branch", [1], "tensor(bool)"), IDS, [False]),
    ],
)
def test_values_are_what_the_name_asks_for(value: Fake, beside: Fake, wanted: object) -> None:
    assert make_feeds([beside, value], Sizes(), {})[value.name].tolist() == wanted


def test_a_state_without_names_has_the_rows_second() -> None:
    assert make_feeds([SOUND, Fake("state", [2, None, 8], "tensor(float)")], Sizes(batch=3), {})["state"].shape == (
        2,
        3,
        8,
    )


def one_height(folder: Path) -> Path:
    """Images 48 pixels high and of any width, as recognisers of text take them."""
    dims = ["batch", 3, "height", "width"]
    product = node("MatMul", ["lines", "image"], ["y"])
    return save(
        model([product], [tensor("image", dims)], [tensor("y", ["batch", 3, 5, "width"])], [weight("lines", 5, 48)]),
        folder,
    )


def test_sizes_are_tried_until_some_work_and_those_are_named(tmp_path: Path) -> None:
    """A Reshape to pairs takes an even length: 7 does not go, 16 does."""
    sizes = constant("sizes", [0, -1, 2, WIDTH], np.int64)
    nodes = [node("Reshape", ["x", "sizes"], ["r"]), node("Softmax", ["r"], ["y"])]
    ends = [tensor("x", ["batch", "length", WIDTH])], [tensor("y", ["batch", "pairs", 2, WIDTH])]
    found = diagnose(save(model(nodes, *ends, [sizes]), tmp_path), run=True, seconds=None)
    assert found.facts["ran"] == "x [2, 16, 64]; x [1, 16, 64]; x [3, 16, 64]; x [2, 26, 64]"


def test_a_size_that_fails_is_in_the_evidence(tmp_path: Path) -> None:
    """Pixels that a model does not take are a warning: it may be meant for the others alone."""
    (found,) = diagnose(one_height(tmp_path), run=True, seconds=None).findings
    assert (found.code, found.severity) == ("TC306", "warning")
    assert "image [2, 3, 72, 480]" in found.nodes[0]
    assert found.detail == "image [2, 3, 48, 320] runs"
    assert "sizes that the model takes" in found.fix


def test_an_input_of_a_huge_literal_size_is_not_made(tmp_path: Path) -> None:
    made = model([node("Relu", ["x"], ["y"])], [tensor("x", [1 << 62])], [tensor("y", [1 << 62])])
    found = diagnose(save(made, tmp_path), run=True, seconds=None)
    assert found.codes == ("TC301",)
    assert found.notes[-1].endswith(f"it was loaded and not run: x has the shape [{1 << 62}].")


def test_text_that_is_no_utf8_is_an_error_of_the_run(tmp_path: Path) -> None:
    text = TensorProto(name="text", data_type=TensorProto.STRING, dims=[1], string_data=[b"\xff\xfe"])
    nodes = [layer(), node("Identity", ["text"], ["z"])]
    outputs = [rows("y"), tensor("z", [1], TensorProto.STRING)]
    path = save(model(nodes, [rows()], outputs, [weight("w", WIDTH, WIDTH), text]), tmp_path)
    observed = observe(Subject(path, "cpu", {}, {}))
    assert observed.trials == ()
    assert observed.failed[0].error == "an output holds text that is no UTF-8 (invalid start byte)"
    assert "no UTF-8" in diagnose(path, run=True, seconds=None).notes[-1]


def test_lengths_of_zero_are_no_alarm(tmp_path: Path) -> None:
    """A mean over the length: 0 / 0 at a length of zero, which nobody feeds."""
    nodes = [
        node("Cast", ["input_lengths"], ["n"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["n", "axis"], ["column"]),
        node("ReduceSum", ["x", "axis"], ["sum"], keepdims=1),
        node("Mul", ["sum", "zero"], ["none"]),
        node("Div", ["none", "column"], ["y"]),
    ]
    inputs = [tensor("x", ["batch", "length"]), tensor("input_lengths", ["batch"], TensorProto.INT64)]
    numbers = [constant("axis", [1], np.int64), constant("zero", 0.0)]
    path = save(model(nodes, inputs, [tensor("y", ["batch", 1])], numbers), tmp_path)
    assert diagnose(path, run=True, seconds=None).codes == ()


def test_numbers_that_may_point_at_rows_stay_within_them() -> None:
    """The edges of a graph of one atom join it to itself."""
    edges = Fake("edge_index", [2, "edges"])
    assert make_feeds([edges], Sizes(batch=1), {})["edge_index"].max() == 0
    assert make_feeds([edges], Sizes(), {})["edge_index"].max() == 1


def test_a_logarithm_of_what_is_fed_is_no_alarm_and_one_of_zero_is(tmp_path: Path) -> None:
    logarithm = [node("Log", ["x"], ["l"]), layer("l")]
    made = model(logarithm, [rows()], [rows("y")], [weight("w", WIDTH, WIDTH)])
    assert "TC709" not in diagnose(save(made, tmp_path), run=True, seconds=None).codes
    zero = [node("Mul", ["x", "zero"], ["z"]), node("Log", ["z"], ["l"]), layer("l")]
    made = model(zero, [rows()], [rows("y")], [weight("w", WIDTH, WIDTH), constant("zero", 0.0)])
    (found,) = [f for f in diagnose(save(made, tmp_path), run=True, seconds=None).findings if f.code == "TC709"]
    assert "division by zero" in found.fix


@pytest.mark.parametrize(("width", "codes"), [(6, set()), ("length", {"TC603"})])
def test_a_mask_with_a_literal_axis_is_none_of_padding(width: int | str, codes: set[str], tmp_path: Path) -> None:
    """Which of six atoms a residue has; the first atom away gives NaN here, as the first token would in a text."""
    nodes = [
        node("Cast", ["target_mask"], ["m"], to=TensorProto.FLOAT),
        node("Gather", ["m", "first"], ["k"], axis=1),
        node("Log", ["k"], ["y"]),
    ]
    made = model(nodes, [tensor("target_mask", ["batch", width], TensorProto.BOOL)], [tensor("y", None)])
    made.graph.initializer.append(constant("first", 0, np.int64))
    assert set(diagnose(save(made, tmp_path), run=True, seconds=None).codes) & {"TC603"} == codes
