"""Float32 islands: which nodes become one, by rule and by measurement, and what lies at their border."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.halves.graphs import BF16, FP16, WIDE, graph, kept, loaded, node, session
from truecast.errors import InputError
from truecast.halves.islands import float32_ends, keep_float32
from truecast.halves.kernels import without_kernel
from truecast.halves.model import HALVES
from truecast.halves.nodes import all_nodes, dtypes
from truecast.halves.reach import SAFE_SHARE, beyond, measured
from truecast.halves.twin import make_twin

FP, BF = HALVES["fp16"], HALVES["bf16"]


def types(model: ir.Model) -> dict[str, ir.DataType]:
    return {value.name or "": dtype for value, dtype in dtypes(model, all_nodes(model)).items()}


def stream() -> onnx.ModelProto:
    """x → large = x·w → next = large + x → y = next / w, of float16."""
    nodes = [
        node("Mul", ["x", "w"], "large"),
        node("Add", ["large", "x"], "next"),
        node("Div", ["next", "w"], "y"),
    ]
    return graph(nodes, x=FP16, y=FP16, weights={"w": (FP16, np.full(4, 60000, np.float32))})


X = np.array([[2, -3, 4, 1]], np.float32)


class TestMeasuring:
    def test_the_largest_magnitude_of_every_value_over_all_examples(self, tmp_path: Path) -> None:
        file = kept(loaded(stream()), tmp_path)
        reach = measured(tmp_path, file, FP, [{"x": X}, {"x": X / 2}])
        w = float(np.float16(60000))
        assert reach.values == {"x": 4.0, "large": 4 * w, "next": 4 * w + 4, "y": pytest.approx(4.0, rel=1e-4)}
        assert reach.examples == 2

    def test_nodes_that_read_or_give_far_values_are_islands(self, tmp_path: Path) -> None:
        model = loaded(stream())
        reach = measured(tmp_path, kept(model, tmp_path), FP, [{"x": X}])
        found, wide = beyond(model, FP, reach)
        assert (set(found), wide) == ({"large", "next", "y"}, {"large", "next"})
        assert found["next"] == "reaches 2.4e+05"

    @pytest.mark.parametrize(("share", "count"), [(0.99, 0), (1.01, 2)])
    def test_the_safe_share_decides(self, share: float, count: int, tmp_path: Path) -> None:
        model = loaded(graph([node("Add", ["x", "x"], "a"), node("Tanh", ["a"], "y")], x=FP16, y=FP16))
        x = np.full((1, 4), share * SAFE_SHARE * FP.largest / 2, np.float32)
        found, _ = beyond(model, FP, measured(tmp_path, kept(model, tmp_path), FP, [{"x": x}]))
        assert len(found) == count

    def test_a_mask_is_none_but_what_it_is_added_to_is_measured(self, tmp_path: Path) -> None:
        nodes = [
            node("Mul", ["x", "x"], "scores"),
            node("Add", ["scores", "mask"], "masked"),
            node("Softmax", ["masked"], "y"),
        ]
        weights = {"mask": (FP16, np.array([0, 0, 0, -65504], np.float32))}
        model = loaded(graph(nodes, x=FP16, y=FP16, weights=weights))
        file = kept(model, tmp_path)
        assert beyond(model, FP, measured(tmp_path, file, FP, [{"x": X}]))[0] == {}
        found, _ = beyond(model, FP, measured(tmp_path, file, FP, [{"x": 50 * X}]))
        assert set(found) == {"scores", "masked"}

    def test_an_example_that_does_not_fit_is_refused(self, tmp_path: Path) -> None:
        file = kept(loaded(stream()), tmp_path)
        for feeds, lenient in (([{"x": X}, {"x": X[0]}], False), ([{"x": X[0]}], True)):
            with pytest.raises(InputError, match="The model does not take an example"):
                measured(tmp_path, file, FP, feeds, lenient=lenient)
        assert measured(tmp_path, file, FP, [{"x": X[0]}, {"x": X}], lenient=True).examples == 1


class TestKeeping:
    def test_far_values_stay_float32_from_node_to_node(self) -> None:
        model = loaded(stream())
        keep_float32(model, FP, {"large", "next", "y"}, {"large", "next"})
        found = types(model)
        assert {found[name] for name in ("large", "next", "x.float32", "w.float32")} == {ir.DataType.FLOAT}
        assert found["y"] is ir.DataType.FLOAT16
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        make_twin(model, FP)
        got = session(model).run(None, {"x": X.astype(np.float16)})[0]
        np.testing.assert_allclose(got, X, atol=2e-3)

    def test_without_islands_the_same_graph_overflows(self) -> None:
        model = loaded(stream())
        make_twin(model, FP)
        assert not np.isfinite(session(model).run(None, {"x": X.astype(np.float16)})[0]).all()

    def test_inputs_and_outputs_beyond_are_float32(self) -> None:
        nodes = [node("Add", ["x", "x"], "a"), node("Add", ["a", "x"], "y")]
        model = loaded(graph(nodes, x=FP16, y=FP16))
        keep_float32(model, FP, {"a", "y"}, {"x", "a", "y"})
        assert {found.dtype for found in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT}
        assert session(model).run(None, {"x": np.full((1, 4), 1e5, np.float32)})[0].max() == np.float32(3e5)

    def test_a_cast_is_shared_by_all_who_read_it(self) -> None:
        nodes = [
            node("Tanh", ["x"], "a"),
            node("Mul", ["a", "x"], "b"),
            node("Mul", ["a", "a"], "c"),
            node("Add", ["b", "c"], "y"),
        ]
        model = loaded(graph(nodes, x=FP16, y=FP16))
        keep_float32(model, FP, {"b", "c"})
        casts = [it.name for it in model.graph if it.op_type == "Cast"]
        assert sorted(casts) == ["a.float32", "b.fp16", "c.fp16", "x.float32"]
        onnx.checker.check_model(ir.to_proto(model), full_check=True)

    def test_ends_of_bfloat16_become_float32(self) -> None:
        model = loaded(graph([node("Add", ["x", "x"], "y")], x=BF16, y=BF16))
        float32_ends(model, BF)
        assert [it.name for it in model.graph.outputs] == ["y"]
        assert {found.dtype for found in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT}
        onnx.checker.check_model(ir.to_proto(model), full_check=True)


class TestKernels:
    def made(self, nodes: list[onnx.NodeProto], opset: int = 21) -> dict[str, str]:
        model = graph([node("Cast", ["x"], "a", to=BF16), *nodes, node("Cast", ["b"], "y", to=WIDE)], opset=opset)
        return without_kernel(loaded(model), BF)

    @pytest.mark.parametrize("kind", ["Tanh", "Gelu", "Softmax", "Erf", "Sqrt", "Relu", "Sigmoid", "Neg", "Identity"])
    def test_most_operators_have_one(self, kind: str) -> None:
        assert self.made([node(kind, ["a"], "b")]) == {}

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            ("Log", "cuda has no bfloat16 kernel of Log-13"),
            ("ReduceL2", "cuda has no bfloat16 kernel of ReduceL2-18"),
            ("Clip", "cuda has no bfloat16 kernel of Clip-13"),
            ("Elu", "Elu-6 does not take bfloat16"),
        ],
    )
    def test_others_have_none(self, kind: str, reason: str) -> None:
        assert self.made([node(kind, ["a"], "b")]) == {"b": reason}

    def test_what_becomes_a_cast_needs_none(self) -> None:
        nodes = [node("Cast", ["x"], "a", to=BF16), node("CastLike", ["x", "a"], "b"), node("Add", ["a", "b"], "c")]
        assert without_kernel(loaded(graph([*nodes, node("Cast", ["c"], "y", to=WIDE)])), BF) == {}

    @pytest.mark.parametrize(("opset", "found"), [(21, {"b": "Sin-7 does not take bfloat16"}), (22, {})])
    def test_a_newer_opset_may_take_what_an_older_one_does_not(self, opset: int, found: dict[str, str]) -> None:
        assert self.made([node("Sin", ["a"], "b")], opset) == found

    def test_an_island_of_them_needs_none(self) -> None:
        nodes = [
            node("Cast", ["x"], "a", to=BF16),
            node("Log", ["a"], "b"),
            node("Cast", ["b"], "y", to=WIDE),
        ]
        model = loaded(graph(nodes))
        keep_float32(model, BF, without_kernel(model, BF))
        assert without_kernel(model, BF) == {}
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
