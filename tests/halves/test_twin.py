"""The float32 twin: what it computes, that nothing drops its rounding, and what the processor hides without it."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.halves.graphs import BF16, FP16, WIDE, graph, kept, loaded, node, session
from truecast.halves.model import HALVES
from truecast.halves.reach import measured
from truecast.halves.twin import make_twin
from truecast.runtime.providers import LEVELS, LOAD_ERRORS

X = np.random.default_rng(7).standard_normal((3, 4)).astype(np.float32)
W = np.random.default_rng(8).standard_normal((4, 4)).astype(np.float32)


def chain(dtype: int) -> onnx.ModelProto:
    """((x·w + x) * 3) of 16 bits between two casts."""
    nodes = [
        node("Cast", ["x"], "small", to=dtype),
        node("MatMul", ["small", "w"], "product"),
        node("Add", ["product", "small"], "sum"),
        node("Constant", [], "three", value=onnx.helper.make_tensor("three", dtype, [], [3.0])),
        node("Mul", ["sum", "three"], "scaled"),
        node("Cast", ["scaled"], "y", to=WIDE),
    ]
    return graph(nodes, weights={"w": (dtype, W)})


def by_hand(dtype: np.dtype) -> np.ndarray:
    """The same, each result rounded."""

    def rounded(array: np.ndarray) -> np.ndarray:
        return array.astype(dtype).astype(np.float32)

    x, w = rounded(X), rounded(W)
    return rounded(rounded(rounded(x @ w) + x) * 3)


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize(("name", "onnx_dtype", "dtype"), [("bf16", BF16, ml_dtypes.bfloat16), ("fp16", FP16, "f2")])
def test_each_result_is_rounded_at_every_level_of_optimization(
    name: str, onnx_dtype: int, dtype: str, level: ort.GraphOptimizationLevel
) -> None:
    model = loaded(chain(onnx_dtype))
    names = make_twin(model, HALVES[name])
    assert set(names) == {"small", "product", "sum", "scaled"}
    got = session(model, level).run(None, {"x": X})[0]
    np.testing.assert_array_equal(got, by_hand(np.dtype(dtype)))


def test_without_rounding_it_is_float32_with_weights_of_16_bits() -> None:
    model = loaded(chain(BF16))
    make_twin(model, HALVES["bf16"], rounded=False)
    w = W.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_allclose(session(model).run(None, {"x": X})[0], (X @ w + X) * 3, rtol=1e-6)


def test_inputs_and_outputs_of_16_bits_are_fed_and_named_as_before() -> None:
    model = loaded(graph([node("Mul", ["x", "x"], "y")], x=FP16, y=FP16))
    make_twin(model, HALVES["fp16"])
    opened = session(model)
    assert [(value.name, value.type) for value in opened.get_inputs()] == [("x", "tensor(float16)")]
    assert [(value.name, value.type) for value in opened.get_outputs()] == [("y", "tensor(float)")]
    small = X.astype(np.float16)
    np.testing.assert_array_equal(opened.run(None, {"x": small})[0], (small * small).astype(np.float32))


def test_the_processor_hides_an_overflow_that_the_twin_shows() -> None:
    """ONNX Runtime keeps neighbours of float16 in float32 where it has no kernel: 70000 comes through."""
    nodes = [
        node("Cast", ["x"], "small", to=FP16),
        node("Mul", ["small", "w"], "large"),
        node("Div", ["large", "w"], "back"),
        node("Cast", ["back"], "y", to=WIDE),
    ]
    model = graph(nodes, weights={"w": (FP16, np.full(4, 60000, np.float32))})
    x = np.full((1, 4), 2, np.float32)
    for level in LEVELS.values():
        assert session(model, level).run(None, {"x": x})[0].max() == 2
    twin = loaded(model)
    make_twin(twin, HALVES["fp16"])
    assert np.isinf(session(twin).run(None, {"x": x})[0]).all()


COMPUTING = {
    "Add": ["a", "a"],
    "MatMul": ["a", "w"],
    "Softmax": ["a"],
    "Gelu": ["a"],
    "Tanh": ["a"],
    "Sqrt": ["a"],
}
MOVING = {"Identity": ["a"], "Transpose": ["a"], "Flatten": ["a"], "Concat": ["a", "a"]}


@pytest.mark.parametrize(("kind", "inputs"), [*COMPUTING.items(), *MOVING.items()])
def test_the_processor_moves_bfloat16_but_does_not_compute_in_it(kind: str, inputs: list[str]) -> None:
    attributes = {"axis": 0} if kind == "Concat" else {}
    nodes = [
        node("Cast", ["x"], "a", to=BF16),
        node(kind, inputs, "b", **attributes),
        node("Cast", ["b"], "y", to=WIDE),
    ]
    model = graph(nodes, weights={"w": (BF16, W)} if "w" in inputs else {})
    onnx.checker.check_model(model, full_check=True)
    if kind in MOVING:
        assert session(model).run(None, {"x": X})[0].dtype == np.float32
    else:
        with pytest.raises(LOAD_ERRORS):
            session(model)


def branching() -> onnx.ModelProto:
    """x·x where the first number of x is positive, else x + x, of bfloat16."""
    info = [onnx.helper.make_tensor_value_info(name, BF16, ["any", "size"]) for name in ("square", "double")]
    then = onnx.helper.make_graph([node("Mul", ["small", "small"], "square")], "then", [], info[:1])
    other = onnx.helper.make_graph([node("Add", ["small", "small"], "double")], "other", [], info[1:])
    zero = onnx.helper.make_tensor("zero", WIDE, [], [0.0])
    nodes = [
        node("Constant", [], "zero", value=zero),
        node("ReduceMax", ["x"], "most", keepdims=0),
        node("Greater", ["most", "zero"], "positive"),
        node("Cast", ["x"], "small", to=BF16),
        node("If", ["positive"], "chosen", then_branch=then, else_branch=other),
        node("Cast", ["chosen"], "y", to=WIDE),
    ]
    return graph(nodes)


def test_branches_are_rounded_and_measured_as_well(tmp_path: Path) -> None:
    model = loaded(branching())
    make_twin(model, HALVES["bf16"])
    opened = session(model)
    for x in (X, -np.abs(X)):
        small = x.astype(ml_dtypes.bfloat16)
        want = small * small if x.max() > 0 else small + small
        np.testing.assert_array_equal(opened.run(None, {"x": x})[0], want.astype(np.float32))
    reach = measured(tmp_path, kept(loaded(branching()), tmp_path), HALVES["bf16"], [{"x": X}])
    assert reach.values == {"small": np.abs(X).max(), "chosen": (X * X).max()}
