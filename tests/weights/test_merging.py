"""The two sides of a gate become one product where their weights are alike, and give the numbers of two."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.encodings import Drawn, make_affine
from tests.weights.graphs import WIDTH, kinds, linear, model, packed, value
from tests.weights.stored import encoded, random, run_packed
from truecast.weights import packing
from truecast.weights.merging import gates
from truecast.weights.packing import Packer
from truecast.weights.precision import Precision

HIDDEN = 48
OWN = Precision("as-is", ir.DataType.FLOAT, activations="float", own=True)
INT4, INT8 = (Precision(f"int{bits}", ir.DataType.FLOAT, bits, 32, "float") for bits in (4, 8))
FP32 = Precision("fp32", ir.DataType.FLOAT)
CLOSE = 1e-5
"""Of the largest number: the same codes, added up in another order."""


def gated(activation: str = "Silu", biases: int = 0, second: str = "x", up_first: bool = False) -> ir.Model:
    """activation(x · gateᵀ) * (x · upᵀ), the second product of `x` or of another input."""
    x, other = (value(name, ir.DataType.FLOAT, "b", "n", WIDTH) for name in ("x", "other"))
    sides = [("gate", x), ("up", x if second == "x" else other)]
    products = {
        name: linear(source, f"{name}.weight", (HIDDEN, WIDTH), f"{name}.bias" if index < biases else "")
        for index, (name, source) in enumerate(sides)
    }
    left, right = (products[name].outputs[0] for name in ("gate", "up"))
    between = []
    if activation == "Silu":  # as it is traced: two operators, of which the second reads the product again
        half = ir.node("Sigmoid", [left])
        between = [half, ir.node("Mul", [left, half.outputs[0]])]
    elif activation:
        between = [ir.node(activation, [left])]
    end = between[-1].outputs[0] if between else left
    nodes = [*products.values()][:: -1 if up_first else 1] + between + [ir.node("Mul", [end, right])]
    result = nodes[-1].outputs[0]
    result.name, result.type = "out", ir.TensorType(ir.DataType.FLOAT)
    return model([x, *([other] if second != "x" else [])], nodes, [result])


ARRAYS = {
    f"{name}.{kind}": random(HIDDEN, WIDTH, seed=seed) if kind == "weight" else random(HIDDEN, seed=seed + 5)
    for seed, name in enumerate(("gate", "up"))
    for kind in ("weight", "bias")
}


def products_of(packer: Packer) -> int:
    return kinds(packer)["MatMulNBits"]


@pytest.mark.parametrize("up_first", [False, True])
@pytest.mark.parametrize("biases", [0, 2])
@pytest.mark.parametrize("precision", [INT4, INT8], ids=["int4", "int8"])
@pytest.mark.parametrize("activation", ["Silu", "Gelu", "Tanh", ""])
def test_two_sides_of_a_gate_become_one_product_of_the_same_numbers(
    activation: str, precision: Precision, biases: int, up_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = {"x": random(2, 5, WIDTH, seed=9)}
    together = packed(gated(activation, biases, up_first=up_first), ARRAYS, precision)
    assert (products_of(together), kinds(together)["Split"]) == (1, 1)
    names = ["up", "gate"] if up_first else ["gate", "up"]
    assert together.bindings[0].sources == tuple(f"{name}.weight" for name in names)
    assert {"gate", "up"} <= {output.name for node in together.model.graph for output in node.outputs}
    got = run_packed(together, tmp_path, fed)[0]
    monkeypatch.setattr(packing, "gates", lambda graph: [])
    apart = packed(gated(activation, biases, up_first=up_first), ARRAYS, precision)
    assert (products_of(apart), kinds(apart)["Split"]) == (2, 0)
    want = run_packed(apart, tmp_path, fed)[0]
    assert np.abs(got - want).max() <= CLOSE * np.abs(want).max()


def test_halves_taken_for_each_other_would_be_seen(tmp_path: Path) -> None:
    fed, packer = {"x": random(2, 5, WIDTH, seed=9)}, packed(gated(), ARRAYS, INT4)
    right = run_packed(packer, tmp_path, fed)[0]
    split = next(node for node in packer.model.graph if node.op_type == "Split")
    gate, up = split.outputs
    uses = [(use, value) for value, other in ((gate, up), (up, gate)) for use in list(value.uses())]
    for use, old in uses:
        use.node.replace_input_with(use.idx, up if old is gate else gate)
    wrong = run_packed(packer, tmp_path, fed)[0]
    assert np.abs(wrong - right).max() > 0.1 * np.abs(right).max()


@pytest.mark.parametrize(
    ("graph", "precision"),
    [
        (gated(biases=1), INT4),
        (gated(second="other"), INT4),
        (gated(), FP32),
    ],
    ids=["biased unlike", "of two inputs", "floats"],
)
def test_sides_that_do_not_fit_together_stay_apart(graph: ir.Model, precision: Precision) -> None:
    counts = kinds(packed(graph, ARRAYS, precision))
    assert counts["MatMulNBits"] + counts["MatMul"] == 2


def test_products_that_are_added_are_no_gate_and_a_product_is_in_one_pair() -> None:
    def three() -> list[ir.Node]:
        x = value("x", ir.DataType.FLOAT, "n", WIDTH)
        return [linear(x, f"{name}.weight", (HIDDEN, WIDTH)) for name in "abc"]

    def pairs(*nodes: ir.Node) -> list[list[ir.Node]]:
        x = nodes[0].inputs[0]
        assert x is not None
        return gates(model([x], list(nodes), [nodes[-1].outputs[0]]).graph)

    a, b, _ = three()
    assert pairs(a, b, ir.node("Add", [a.outputs[0], b.outputs[0]])) == []
    a, b, c = three()
    first = ir.node("Mul", [b.outputs[0], a.outputs[0]])
    second = ir.node("Mul", [a.outputs[0], c.outputs[0]])
    last = ir.node("Mul", [first.outputs[0], second.outputs[0]])
    assert pairs(a, b, c, first, second, last) == [[a, b]]


def drawn_gate(gate: Drawn, up: Drawn) -> Packer:
    arrays = {
        f"{n}.weight": encoded(f"{n}.weight", d.encoding, (HIDDEN, WIDTH)) for n, d in (("gate", gate), ("up", up))
    }
    return packed(gated(""), arrays, OWN)


def side(seed: int, bits: int = 4, group: int = 32, **options: object) -> Drawn:
    return make_affine(seed, bits, group, (HIDDEN, WIDTH), **({"zero": "groups"} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        {"bits": 8},
        {"group": 16},
        {"order": True},
        {"scales": "bfloat16"},
        {"scales": "float16 · six bits"},
        {"offsets": "float16"},
        {"zero": "middle"},
    ],
    ids=str,
)
def test_sides_whose_codes_are_unlike_stay_apart(other: dict[str, object], tmp_path: Path) -> None:
    gate, up = side(1), side(2, **other)  # type: ignore[arg-type]
    packer, x = drawn_gate(gate, up), random(2, 5, WIDTH, seed=9)
    assert products_of(packer) == 2
    want = (x @ gate.values.T) * (x @ up.values.T)
    np.testing.assert_allclose(run_packed(packer, tmp_path, {"x": x})[0], want, rtol=1e-3, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 1 << 20),
    st.sampled_from((2, 4, 8)),
    st.sampled_from((16, 32, 64)),
    st.sampled_from(("middle", "groups")),
    st.sampled_from(("", "float16")),
)
def test_a_checkpoints_own_codes_make_one_product(seed: int, bits: int, group: int, zero: str, offsets: str) -> None:
    gate, up = (side(seed + i, bits, group, zero=zero, offsets=offsets) for i in range(2))
    packer, x = drawn_gate(gate, up), random(2, 5, WIDTH, seed=seed)
    assert products_of(packer) == 1
    with tempfile.TemporaryDirectory() as folder:
        got = run_packed(packer, Path(folder), {"x": x})[0]
    want = (x @ gate.values.T) * (x @ up.values.T)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
