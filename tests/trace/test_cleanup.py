"""Every rule of the clean-up: what it leaves, and that the graph's results stay the same bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest

from truecast.trace.cleanup import clean

HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'
SIZES = ({"B": 2, "S": 3}, {"B": 1, "S": 1}, {"B": 3, "S": 5})
"""Values of the free dimensions; a size that a rule bakes in shows at the next."""


def feeds(model: onnx.ModelProto, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)
    initialized = {tensor.name for tensor in model.graph.initializer}
    shapes = {
        value.name: [
            sizes[dim.dim_param] if dim.dim_param else dim.dim_value for dim in value.type.tensor_type.shape.dim
        ]
        for value in model.graph.input
        if value.name not in initialized
    }
    return {name: numbers.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def run(model: onnx.ModelProto, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, given), strict=True))


def cleaned(text: str) -> list[str]:
    """The operators that are left, Constants aside; fails when a result changes by a bit or loses its name."""
    before = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(HEADER + text), data_prop=True)
    model = ir.from_proto(before)
    clean(model)
    after = ir.to_proto(model)
    for sizes in SIZES:
        given = feeds(before, sizes)
        results, expected = run(after, given), run(before, given)
        assert list(results) == list(expected)
        for name, array in expected.items():
            assert np.array_equal(results[name], array), name
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


NO_OPS = {
    "Reshape": "s = Constant <value_ints = [0, 0, 8]> () y = Reshape (x, s)",
    "Expand": "s = Constant <value_ints = [1, 1, 8]> () y = Expand (x, s)",
    "Slice": "a = Constant <value_ints = [0]> () e = Constant <value_ints = [8]> () "
    "d = Constant <value_ints = [2]> () y = Slice (x, a, e, d)",
    "Cast": "y = Cast <to = 1> (x)",
    "Transpose": "y = Transpose <perm = [0, 1, 2]> (x)",
    "Mul": "one = Constant <value_float = 1.0> () y = Mul (x, one)",
}


@pytest.mark.parametrize("kind", NO_OPS)
def test_an_operator_that_changes_nothing_vanishes(kind: str) -> None:
    body = NO_OPS[kind].replace("y =", "t =") + " y = Neg (t)"
    assert cleaned(f"g (float[B, S, 8] x) => (float[B, S, 8] y) <float[B, S, 8] t> {{ {body} }}") == ["Neg"]


@pytest.mark.parametrize(
    ("result", "body"),
    [
        ("float[B, S, 8]", "s = Constant <value_ints = [2]> () m = Mul (x, x) t = Cast <to = 11> (m)"),
        ("float[B, S, 8]", "one = Constant <value_float = 1.5> () t = Mul (x, one)"),
        ("float[1, B, S, 8]", "one = Constant <value = float[1, 1, 1, 1] {1.0}> () t = Mul (x, one)"),
        ("float[S, B, 8]", "t = Transpose <perm = [1, 0, 2]> (x)"),
        (
            "float[B, S, 8]",
            "a = Constant <value_ints = [-1]> () e = Constant <value_ints = [-99]> () "
            "d = Constant <value_ints = [2]> () t = Slice (x, a, e, d, a)",
        ),
        (
            "float[B, S, 4]",
            "a = Constant <value_ints = [0]> () e = Constant <value_ints = [4]> () d = Constant <value_ints = [2]> () "
            "t = Slice (x, a, e, d)",
        ),
    ],
    ids=["cast", "mul 1.5", "mul adds an axis", "transpose", "slice backwards", "slice"],
)
def test_an_operator_that_changes_something_stays(result: str, body: str) -> None:
    kind = body.rpartition("t = ")[2].partition(" ")[0]
    text = f"g (float[B, S, 8] x) => ({result} y) {{ {body} u = Cast <to = 1> (t) y = Neg (u) }}"
    assert kind in cleaned(text)


def test_a_result_keeps_its_name_when_its_last_operator_vanishes() -> None:
    text = "g (float[B, S, 8] x) => (float[B, S, 8] y) { t = Neg (x) y = Cast <to = 1> (t) }"
    assert cleaned(text) == ["Neg"]


def test_an_input_does_not_become_a_result() -> None:
    assert cleaned("g (float[B, S, 8] x) => (float[B, S, 8] y) { y = Cast <to = 1> (x) }") == ["Cast"]


def test_one_value_does_not_become_two_results() -> None:
    text = "g (float[B, S, 8] x) => (float[B, S, 8] t, float[B, S, 8] y) { t = Neg (x) y = Cast <to = 1> (t) }"
    assert cleaned(text) == ["Neg", "Cast"]


def test_a_computed_target_shape_becomes_a_constant() -> None:
    text = """g (float[B, S, 8] x) => (float[B, S, 2, 4] y) {
        whole = Shape (x)
        zero = Constant <value_ints = [0]> ()
        two = Constant <value_ints = [2]> ()
        free = Slice (whole, zero, two)
        heads = Constant <value_ints = [2, 4]> ()
        target = Concat <axis = 0> (free, heads)
        y = Reshape <allowzero = 1> (x, target)
    }"""
    assert cleaned(text) == ["Reshape"]


def test_a_target_with_two_new_free_sizes_stays_computed() -> None:
    text = """g (float[B, S, 8] x) => (float[S, B, 8] y) {
        whole = Shape (x)
        order = Constant <value_ints = [1, 0, 2]> ()
        target = Gather (whole, order)
        y = Reshape (x, target)
    }"""
    assert cleaned(text) == ["Shape", "Gather", "Reshape"]


def test_two_reshapes_are_one() -> None:
    text = """g (float[B, S, 8] x) => (float[B, S, 4, 2] y) <float[B, S, 2, 4] t> {
        s = Constant <value_ints = [0, 0, 2, 4]> ()
        t = Reshape (x, s)
        r = Constant <value_ints = [0, 0, 4, 2]> ()
        y = Reshape (t, r)
    }"""
    assert cleaned(text) == ["Reshape"]


def test_reshapes_there_and_back_vanish() -> None:
    text = """g (float[B, S, 8] x) => (float[B, S, 8] y) <float[B, S, 2, 4] t, float[B, S, 8] u> {
        s = Constant <value_ints = [0, 0, 2, 4]> ()
        t = Reshape (x, s)
        r = Constant <value_ints = [0, 0, 8]> ()
        u = Reshape (t, r)
        y = Neg (u)
    }"""
    assert cleaned(text) == ["Neg"]


def test_a_copied_axis_is_copied_from_the_right_tensor() -> None:
    text = """g (float[B, S, 2, 4] x) => (float[S, B, 8] y) <float[S, B, 2, 4] t> {
        whole = Shape (x)
        order = Constant <value_ints = [1, 0, 2, 3]> ()
        target = Gather (whole, order)
        t = Reshape (x, target)
        r = Constant <value_ints = [0, 0, 8]> ()
        y = Reshape (t, r)
    }"""
    assert cleaned(text) == ["Shape", "Gather", "Reshape", "Reshape"]


def test_an_empty_tensor_keeps_its_zero() -> None:
    text = """g (float[2, 0] x) => (float[0, 2] y) <float[0, 1, 2] t> {
        s = Constant <value_ints = [0, 1, 2]> ()
        t = Reshape <allowzero = 1> (x, s)
        r = Constant <value_ints = [0, 2]> ()
        y = Reshape <allowzero = 1> (t, r)
    }"""
    assert cleaned(text) == ["Reshape", "Reshape"]


def test_two_transposes_are_one() -> None:
    text = """g (float[B, S, 2, 4] x) => (float[B, 4, S, 2] y) {
        t = Transpose <perm = [0, 2, 1, 3]> (x)
        y = Transpose <perm = [0, 3, 2, 1]> (t)
    }"""
    assert cleaned(text) == ["Transpose"]


def test_transposes_there_and_back_vanish() -> None:
    text = """g (float[B, S, 2, 4] x) => (float[B, S, 2, 4] y) {
        t = Transpose <perm = [0, 3, 1, 2]> (x)
        u = Transpose <perm = [0, 2, 3, 1]> (t)
        y = Neg (u)
    }"""
    assert cleaned(text) == ["Neg"]


@pytest.mark.parametrize(
    "norm",
    [
        "LayerNormalization <axis = -1, epsilon = 0.01>",
        "LayerNormalization <axis = 3>",
        "SimplifiedLayerNormalization <axis = -1>",
    ],
)
def test_transposes_cancel_through_a_norm_of_the_last_axis(norm: str) -> None:
    text = f"""g (float[B, S, 2, 4] x) => (float[B, S, 2, 4] y)
    <float[4] w = {{1, 2, 3, 4}}, float[B, 2, S, 4] n, float[B, S, 2, 4] u> {{
        t = Transpose <perm = [0, 2, 1, 3]> (x)
        n = {norm} (t, w)
        u = Transpose <perm = [0, 2, 1, 3]> (n)
        y = Neg (u)
    }}"""
    assert cleaned(text) == [norm.partition(" ")[0], "Neg"]


def test_a_norm_of_two_axes_stays_behind_its_transpose() -> None:
    text = """g (float[B, 3, S, 4] x) => (float[B, S, 3, 4] y)
    <float[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> {
        t = Transpose <perm = [0, 2, 1, 3]> (x)
        n = LayerNormalization <axis = -2> (t, w)
        y = Neg (n)
    }"""
    assert cleaned(text) == ["Transpose", "LayerNormalization", "Neg"]


def test_a_transpose_of_the_last_axis_stays_before_a_norm() -> None:
    text = """g (float[B, S, 4, 2] x) => (float[B, S, 2, 4] y) <float[4] w = {1, 2, 3, 4}> {
        t = Transpose <perm = [0, 1, 3, 2]> (x)
        n = LayerNormalization <axis = -1> (t, w)
        y = Neg (n)
    }"""
    assert cleaned(text) == ["Transpose", "LayerNormalization", "Neg"]


SPLIT = """g (float[B, S, 8] x) => (float[B, S, {width}] y) {{
    sizes = Constant <{sizes}> ()
    parts = SplitToSequence <axis = {axis}, keepdims = 1> (x, sizes)
    i = Constant <value_int = {first}> ()
    j = Constant <value_int = {second}> ()
    a = SequenceAt (parts, i)
    b = SequenceAt (parts, j)
    y = Sub (a, b)
}}"""


@pytest.mark.parametrize(
    ("sizes", "axis", "width", "first", "second"),
    [
        ("value_int = 4", -1, 4, 0, 1),
        ("value_int = 4", 2, 4, 1, 0),
        ("value_int = 3", -1, 3, 1, 0),
        ("value_ints = [2, 4, 2]", -1, 2, 0, 2),
        ("value_ints = [2, 4, 2]", 2, 2, -1, -3),
    ],
)
def test_parts_taken_at_constant_places_are_a_split(sizes: str, axis: int, width: int, first: int, second: int) -> None:
    text = SPLIT.format(sizes=sizes, axis=axis, width=width, first=first, second=second)
    assert cleaned(text) == ["Split", "Sub"]


def test_parts_of_a_free_axis_stay_a_sequence() -> None:
    text = """g (float[B, S, 8] x) => (float[B, 1, 8] y) {
        one = Constant <value_int = 1> ()
        parts = SplitToSequence <axis = 1, keepdims = 1> (x, one)
        last = Constant <value_int = -1> ()
        y = SequenceAt (parts, last)
    }"""
    assert cleaned(text) == ["SplitToSequence", "SequenceAt"]


def test_equal_computations_become_one() -> None:
    text = "g (float[B, S, 8] x) => (float[B, S, 8] y) { a = Neg (x) b = Neg (x) y = Mul (a, b) }"
    assert cleaned(text) == ["Neg", "Mul"]


def test_what_nobody_reads_vanishes() -> None:
    assert cleaned("g (float[B, S, 8] x) => (float[B, S, 8] y) { a = Exp (x) y = Neg (x) }") == ["Neg"]


GROUPS = """g (float[B, 6, S] x, float[6] w, float[6] b) => (float[B, 6, S] y) {
    y = GroupNormalization <epsilon = 0.01, num_groups = %d> (x, w, b)
}"""


@pytest.mark.parametrize(("groups", "left"), [(6, "InstanceNormalization"), (3, "GroupNormalization")])
def test_a_group_norm_of_one_channel_a_group_is_an_instance_norm(groups: int, left: str) -> None:
    before = onnx.parser.parse_model(HEADER + GROUPS % groups)
    model = ir.from_proto(before)
    clean(model)
    assert [node.op_type for node in model.graph] == [left]
    for sizes in SIZES:
        given = feeds(before, {**sizes, "S": 4 * sizes["S"]})
        got, want = run(ir.to_proto(model), given), run(before, given)
        np.testing.assert_allclose(got["y"], want["y"], rtol=1e-5, atol=1e-5)
