"""Products of integers compute with the codes that the weight has, and ONNX Runtime makes one kernel of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tests.weights.graphs import WIDTH, attention, feeds, kinds, linear, model, packed, value
from tests.weights.stored import random, run_packed, sources
from truecast.errors import InputError
from truecast.runtime.integers import largest_code
from truecast.weights.channels import quantize_channels
from truecast.weights.integers import Range, Seen
from truecast.weights.names import DYNAMIC, STATIC
from truecast.weights.packing import Packer
from truecast.weights.precision import Precision

OUT = 24
TOP = largest_code()
"""With 8 bits the sums of a processor without VNNI saturate, and the exporter takes 7 there."""
MEASURED = Precision(DYNAMIC, ir.DataType.FLOAT, TOP.bit_length() + 1, channels=True, top=TOP)
KNOWN = Precision(STATIC, ir.DataType.FLOAT, TOP.bit_length() + 1, channels=True, static=True, top=TOP)
SEVEN_BITS = replace(MEASURED, bits=7, top=63)
ROUNDING = 1e-4
"""Of sums of 64 products of unit size in float32."""


def codes_of(x: np.ndarray, known: Range) -> np.ndarray:
    """What an input is after it went through codes of its range."""
    return (np.clip(np.rint(x / known.scale) + known.zero, 0, 255) - known.zero) * known.scale


def seen(x: np.ndarray) -> Range:
    return Range(float(x.min()), float(x.max()))


def weight_of(array: np.ndarray, precision: Precision) -> np.ndarray:
    codes, scales = quantize_channels(array, precision.top)
    return codes * scales[:, None]


def one_product(precision: Precision, bias: bool, transposed: bool, rank: int) -> tuple[Packer, np.ndarray, np.ndarray]:
    """A single product of integers with its input, and what it should give."""
    x, weight, shift = random(*(2, 5, WIDTH)[-rank:]), random(OUT, WIDTH, seed=1), random(OUT, seed=2)
    source = value("x", ir.DataType.FLOAT, *("a", "b")[-rank + 1 :], WIDTH)
    array = np.ascontiguousarray(weight.T) if transposed else weight
    node = linear(source, "p.weight", array.shape, "p.bias" if bias else "", transposed)
    arrays = {"p.weight": array} | ({"p.bias": shift} if bias else {})
    graph = model([source], [node], [node.outputs[0]])
    packer = Packer(graph, sources(arrays), precision, "", "", seen={"p.weight": Seen(seen(x))})
    packer.pack()
    graph.opset_imports.pop("truecast")
    expected = codes_of(x, seen(x)) @ weight_of(weight, precision).T
    return packer, x, expected + (shift if bias else 0)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("precision", [MEASURED, KNOWN, SEVEN_BITS], ids=["measured", "known", "7 bits"])
def test_a_product_multiplies_the_codes_of_both(
    precision: Precision, transposed: bool, bias: bool, rank: int, tmp_path: Path
) -> None:
    packer, x, expected = one_product(precision, bias, transposed, rank)
    for optimized in (True, False):
        got = run_packed(packer, tmp_path, {"x": x}, optimized)[0]
        np.testing.assert_allclose(got, expected, atol=ROUNDING)


def optimized_kinds(folder: Path) -> Counter[str]:
    """What ONNX Runtime made of the graph that `run_packed` left."""
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimized.onnx"), 3
    ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(str(folder / "optimized.onnx")).graph.node)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("precision", [MEASURED, KNOWN], ids=["measured", "known"])
def test_onnx_runtime_makes_one_integer_kernel_of_a_product(precision: Precision, rank: int, tmp_path: Path) -> None:
    packer, x, _ = one_product(precision, True, False, rank)
    run_packed(packer, tmp_path, {"x": x})
    found = optimized_kinds(tmp_path)
    if precision.static:
        assert found["MatMulIntegerToFloat"] == found["QuantizeLinear"] == 1
    else:
        assert found["DynamicQuantizeMatMul"] == 1
    assert not {"MatMul", "Gemm", "MatMulInteger", "DequantizeLinear", "Transpose"} & set(found)


def test_7_bits_never_reach_the_codes_that_saturate() -> None:
    codes, scales = quantize_channels(random(8, 32) * 3, 63)
    assert np.abs(codes).max() == 63 and codes.dtype == np.int8
    assert 2 * 255 * int(np.abs(codes).max()) < 1 << 15
    assert scales.dtype == np.float32


def test_a_row_of_zeros_stays_zero() -> None:
    codes, scales = quantize_channels(np.zeros((2, 4), np.float32), 127)
    assert not codes.any() and (scales == 1).all()


@pytest.mark.parametrize("precision", [MEASURED, KNOWN], ids=["measured", "known"])
def test_products_of_one_input_share_its_codes(precision: Precision, tmp_path: Path) -> None:
    x, first, second = random(2, 3, WIDTH), random(OUT, WIDTH, seed=1), random(8, WIDTH, seed=2)
    source = value("x", ir.DataType.FLOAT, "a", "b", WIDTH)
    nodes = [linear(source, "p.weight", first.shape), linear(source, "q.weight", second.shape)]
    graph = model([source], nodes, [node.outputs[0] for node in nodes])
    examples = {"p.weight": Seen(seen(x)), "q.weight": Seen(seen(x))}
    packer = Packer(graph, sources({"p.weight": first, "q.weight": second}), precision, "", "", seen=examples)
    packer.pack()
    graph.opset_imports.pop("truecast")
    got = run_packed(packer, tmp_path, {"x": x})
    for result, weight in zip(got, (first, second), strict=True):
        np.testing.assert_allclose(result, codes_of(x, seen(x)) @ weight_of(weight, precision).T, atol=ROUNDING)
    assert kinds(packer)["QuantizeLinear" if precision.static else "DynamicQuantizeLinear"] == 1


def test_the_products_of_attention_are_one_product(tmp_path: Path) -> None:
    weights = {f"a.{name}_proj": random(size, WIDTH, seed=size) for name, size in zip("qkv", (32, 16, 16), strict=True)}
    arrays = {f"{name}.weight": array for name, array in weights.items()}
    arrays |= {f"{name}.bias": random(len(array), seed=5) for name, array in weights.items()}
    packer = packed(attention(), arrays, MEASURED)
    assert kinds(packer)["MatMulInteger"] == 1
    assert packer.bindings[0].sources == tuple(f"{name}.weight" for name in weights)
    apart = packed(attention(), arrays, Precision("fp32", ir.DataType.FLOAT))
    wanted = run_packed(apart, tmp_path, feeds())
    (tmp_path / "integers").mkdir()
    for got, want in zip(run_packed(packer, tmp_path / "integers", feeds()), wanted, strict=True):
        assert np.abs(got - want).max() < 0.1 * np.abs(want).max()


def test_a_kept_weight_stays_in_float(tmp_path: Path) -> None:
    x, weights = random(1, 3, WIDTH), {name: random(OUT, WIDTH, seed=i) for i, name in enumerate("pq")}
    source = value("x", ir.DataType.FLOAT, "a", "b", WIDTH)
    nodes = [linear(source, f"{name}.weight", (OUT, WIDTH)) for name in weights]
    graph = model([source], nodes, [node.outputs[0] for node in nodes])
    packer = Packer(graph, sources({f"{n}.weight": a for n, a in weights.items()}), MEASURED, "", "")
    packer.choose = lambda weight: Precision("fp32", ir.DataType.FLOAT) if weight == "p.weight" else MEASURED
    packer.pack()
    graph.opset_imports.pop("truecast")
    np.testing.assert_allclose(run_packed(packer, tmp_path, {"x": x})[0], x @ weights["p"].T, atol=ROUNDING)
    assert kinds(packer)["MatMulInteger"] == kinds(packer)["MatMul"] == 1


def test_an_input_without_a_range_is_an_error_that_names_the_module() -> None:
    source = value("x", ir.DataType.FLOAT, "a", "b", WIDTH)
    node = linear(source, "layer.3.dense.weight", (OUT, WIDTH))
    graph = model([source], [node], [node.outputs[0]])
    packer = Packer(graph, sources({"layer.3.dense.weight": random(OUT, WIDTH)}), KNOWN, "", "")
    with pytest.raises(InputError, match=r"layer\.3\.dense"):
        packer.pack()


@pytest.mark.parametrize("known", [Range(0.5, 2.0), Range(-3.0, -1.0), Range(0.0, 0.0), Range(-0.2, 24.0)])
def test_a_range_holds_zero_exactly(known: Range) -> None:
    assert codes_of(np.zeros(1), known)[0] == 0
    ends = np.array([known.low, known.high])
    assert np.abs(codes_of(ends, known) - ends).max() <= known.scale


def far_channel(x: np.ndarray) -> np.ndarray:
    """An input one of whose channels reaches a hundred times further than the others."""
    x = x.copy()
    x[..., 3] *= 100
    return x


def divided(width: int = WIDTH) -> np.ndarray:
    divisors = np.ones(width, np.float32)
    divisors[3] = 64
    return divisors


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("precision", [MEASURED, KNOWN], ids=["measured", "known"])
def test_a_channel_far_beyond_the_others_does_not_take_their_steps(
    precision: Precision, transposed: bool, rank: int, tmp_path: Path
) -> None:
    x, weight = far_channel(random(*(2, 5, WIDTH)[-rank:])), random(OUT, WIDTH, seed=1)
    weight[:, 3] /= 100  # as training leaves it where an input is large
    array = np.ascontiguousarray(weight.T) if transposed else weight
    errors = []
    for divisors in (None, divided()):
        source = value("x", ir.DataType.FLOAT, *("a", "b")[-rank + 1 :], WIDTH)
        node = linear(source, "p.weight", array.shape, "", transposed)
        graph = model([source], [node], [node.outputs[0]])
        known = seen(x if divisors is None else x / divisors)
        packer = Packer(
            graph, sources({"p.weight": array}), precision, "", "", seen={"p.weight": Seen(known, divisors)}
        )
        packer.pack()
        graph.opset_imports.pop("truecast")
        folder = tmp_path / str(divisors is None)
        folder.mkdir()
        errors.append(np.abs(run_packed(packer, folder, {"x": x})[0] - x @ weight.T).max())
    assert errors[1] < errors[0] / 5


def test_inputs_with_different_divisors_do_not_share_codes(tmp_path: Path) -> None:
    x, weights = far_channel(random(1, 3, WIDTH)), {name: random(OUT, WIDTH, seed=i) for i, name in enumerate("pq")}
    source = value("x", ir.DataType.FLOAT, "a", "b", WIDTH)
    nodes = [linear(source, f"{name}.weight", (OUT, WIDTH)) for name in weights]
    graph = model([source], nodes, [node.outputs[0] for node in nodes])
    packer = Packer(graph, sources({f"{n}.weight": a for n, a in weights.items()}), MEASURED, "", "")
    packer.seen = {"p.weight": Seen(seen(x / divided()), divided()), "q.weight": Seen(seen(x))}
    packer.pack()
    graph.opset_imports.pop("truecast")
    for got, weight in zip(run_packed(packer, tmp_path, {"x": x}), weights.values(), strict=True):
        want = x @ weight.T
        assert np.abs(got - want).max() < 0.02 * (127 / TOP) * np.abs(want).max()  # a step of 7 bits is twice as wide
