"""Ranges are what the examples reached, by every method, and outlying channels are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.weights.graphs import WIDTH, linear, model, packed, value
from tests.weights.stored import random, run_packed
from truecast.calibration.ranges import Ends, product_inputs, seen_inputs, seen_tensors
from truecast.errors import InputError
from truecast.weights.precision import Precision

OUT = 24
GRAPH = "model.onnx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A float graph: two products in a row, the second with a bias."""
    source = value("x", ir.DataType.FLOAT, "a", "b", WIDTH)
    first = linear(source, "p.weight", (OUT, WIDTH))
    second = linear(first.outputs[0], "q.weight", (8, OUT), "q.bias")
    arrays = {"p.weight": random(OUT, WIDTH), "q.weight": random(8, OUT, seed=1), "q.bias": random(8, seed=2)}
    graph = model([source], [first, second], [second.outputs[0]])
    run_packed(packed(graph, arrays, Precision("fp32", ir.DataType.FLOAT)), tmp_path, {"x": random(1, 1, WIDTH)})
    return tmp_path


def feeds() -> list[dict[str, np.ndarray]]:
    return [{"x": random(2, 50, WIDTH, seed=seed)} for seed in range(3)]


def test_every_product_with_a_weight_is_found_by_the_weights_name(folder: Path) -> None:
    assert {weight: len(names) for weight, names in product_inputs(ir.load(folder / GRAPH)).items()} == {
        "p.weight": 1,
        "q.weight": 1,
    }


def test_minmax_is_the_smallest_and_the_largest_value_of_all_examples(folder: Path) -> None:
    seen = seen_inputs(folder, GRAPH, feeds())
    every = np.concatenate([feed["x"] for feed in feeds()])
    assert seen["p.weight"].range.low == every.min() and seen["p.weight"].range.high == every.max()
    states = every @ random(OUT, WIDTH).T
    assert seen["q.weight"].range.high == pytest.approx(states.max(), rel=1e-5)


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_histograms_cut_a_lonely_value_off(method: str, folder: Path) -> None:
    examples = [{"x": np.tile(feed["x"], (1, 40, 1))} for feed in feeds()]
    examples[0]["x"][0, 0, 0] = 30.0
    whole, cut = (seen_inputs(folder, GRAPH, examples, one)["p.weight"] for one in ("minmax", method))
    assert whole.divisors is not None and whole.whole is not None and whole.whole.high == 30
    assert cut.range.high < whole.range.high
    assert whole.range.low <= cut.range.low < -2


def test_divisors_bring_a_far_channel_near_and_are_powers_of_two() -> None:
    ends, x = Ends(), random(200, WIDTH)
    ends.add({"x": x})
    assert ends.divisors("x") is None
    x[:, 5] *= 100
    ends.add({"x": x})
    divisors = ends.divisors("x")
    assert divisors is not None and np.flatnonzero(divisors != 1).tolist() == [5]
    assert np.log2(divisors[5]) % 1 == 0
    assert ends.range("x", divisors).high < 3.1 * np.median(np.abs(x).max(0)) < ends.range("x", None).high


def test_channels_that_are_mostly_zero_have_no_divisors() -> None:
    ends, x = Ends(), np.zeros((4, WIDTH), np.float32)
    x[0, 0] = 1
    ends.add({"x": x})
    assert ends.divisors("x") is None


def test_no_example_is_an_error(folder: Path) -> None:
    with pytest.raises(InputError, match="no example"):
        seen_tensors(folder, GRAPH, [])


def test_an_example_that_the_graph_does_not_take_is_an_error(folder: Path) -> None:
    with pytest.raises(InputError, match="does not take a calibration example"):
        seen_inputs(folder, GRAPH, [{"x": random(2, 3, WIDTH + 1)}])
