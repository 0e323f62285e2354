"""TC309: where ONNX Runtime's quantizers stop, told from the file, and what they then do with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

from tests.hazards.building import WIDTH, constant, linear, model, node, rows, save, tensor, weight
from truecast.diagnosis import Finding, Severity, diagnose

WIDE = 2 * WIDTH


def described(width: int = WIDTH) -> onnx.ModelProto:
    """A weight of which value_info says another width than is stored, as a pass leaves it that changed the weight."""
    made = linear()
    made.graph.value_info.append(tensor("w", [WIDTH, width]))
    return made


def gemm(listed: bool) -> onnx.ModelProto:
    """A Linear as PyTorch exports it, its weight described in value_info as the dynamo exporter does."""
    nodes = [node("Gemm", ["x", "w", "b"], ["y"], transB=1)]
    made = model(nodes, [rows()], [tensor("y", ["batch", WIDE])], [weight("w", WIDE, WIDTH), weight("b", WIDE)])
    made.graph.value_info.extend([tensor("w", [WIDE, WIDTH])] if listed else [])
    return made


def shared_gemm(times: int, wide: int = WIDTH) -> onnx.ModelProto:
    """One weight of several Gemm nodes, as an unrolled recurrent layer has it."""
    nodes = [node("Gemm", ["x", "w", "b"], [f"p{i}"], transB=1) for i in range(times)]
    nodes.append(node("Sum", [f"p{i}" for i in range(times)], ["y"]))
    return model(nodes, [rows()], [tensor("y", ["batch", wide])], [weight("w", wide, WIDTH), weight("b", wide)])


def convolution(inside: bool) -> onnx.ModelProto:
    """A convolution whose weight is a Constant node, as Paddle writes it."""
    kernel, ends = weight("w", 8, 4, 8, 8), ([tensor("x", ["batch", 4, 9, 9])], [tensor("y", ["batch", 8, 2, 2])])
    held = [node("Constant", [], ["w"], value=kernel)] if inside else []
    return model([*held, node("Conv", ["x", "w", "b"], ["y"])], *ends, [*([] if inside else [kernel]), weight("b", 8)])


def two_domains(twice: bool) -> onnx.ModelProto:
    made = linear()
    made.opset_import.extend([made.opset_import[0]] if twice else [])
    return made


def head_of_unknown_rank(known: bool) -> onnx.ModelProto:
    """A classifier's Gemm, of a table's row whose number of axes the file does not say."""
    nodes = [node("Gather", ["x", "first"], ["n"], axis=1), node("Gemm", ["n", "w"], ["y"])]
    inputs = [tensor("x", ["batch", "length", WIDTH] if known else None)]
    return model(nodes, inputs, [rows("y")], [weight("w", WIDTH, WIDTH), constant("first", 0, np.int64)])


def dynamic(path: Path) -> None:
    quantize_dynamic(path, path.with_suffix(".q"))


def pre_process(path: Path) -> None:
    quant_pre_process(str(path), str(path.with_suffix(".p")))


Tool = Callable[[Path], None]
STOPS: dict[str, tuple[Tool, Callable[[bool], onnx.ModelProto]]] = {
    "value_info": (dynamic, lambda bad: described(WIDTH + bad)),
    "Gemm described": (dynamic, gemm),
    "Gemm shared": (dynamic, lambda bad: shared_gemm(2 if bad else 3, WIDE)),
    "Conv of a constant": (dynamic, convolution),
    "two domains": (dynamic, two_domains),
    "unknown rank": (pre_process, lambda bad: head_of_unknown_rank(not bad)),
}


def found(made: onnx.ModelProto, folder: Path) -> list[Finding]:
    return [finding for finding in diagnose(save(made, folder)).findings if finding.code == "TC309"]


@pytest.mark.parametrize("name", STOPS)
def test_a_tool_stops_where_that_is_said(name: str, tmp_path: Path) -> None:
    tool, make = STOPS[name]
    (finding,) = found(make(True), tmp_path)
    assert all("quantize_dynamic" in reason or "quant_pre_process" in reason for reason in finding.nodes)
    with pytest.raises(Exception):  # noqa: B017 (bare exceptions are what it raises)
        tool(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", STOPS)
def test_it_goes_through_the_twin(name: str, tmp_path: Path) -> None:
    tool, make = STOPS[name]
    assert [f for f in found(make(False), tmp_path) if tool.__name__ in str(f.nodes)] == []
    tool(tmp_path / "model.onnx")


def test_the_ways_round_lead_there(tmp_path: Path) -> None:
    path = save(gemm(True), tmp_path)
    assert "Delete the graph's value_info" in diagnose(path).findings[0].fix
    made = onnx.load(path)
    del made.graph.value_info[:]
    dynamic(save(made, tmp_path))
    path = save(convolution(True), tmp_path)
    assert "skip_symbolic_shape=True" in diagnose(path).findings[0].fix
    quant_pre_process(str(path), str(tmp_path / "first.onnx"), skip_symbolic_shape=True)
    dynamic(tmp_path / "first.onnx")
    path = save(head_of_unknown_rank(False), tmp_path)
    (finding,) = diagnose(path).findings
    assert (finding.severity, "skip_symbolic_shape=True" in finding.fix) == (Severity.INFO, True)
    quant_pre_process(str(path), str(tmp_path / "first.onnx"), skip_symbolic_shape=True)


def test_a_square_weight_of_two_gemms_is_quantized_into_wrong_results(tmp_path: Path) -> None:
    (finding,) = found(shared_gemm(2), tmp_path)
    assert "wrong results" in finding.cost
    dynamic(tmp_path / "model.onnx")
    feeds = {"x": np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)}
    sessions = (
        ort.InferenceSession(tmp_path / f"model.{end}", providers=["CPUExecutionProvider"]) for end in ("onnx", "q")
    )
    right, wrong = (session.run(None, feeds)[0] for session in sessions)
    assert np.abs(wrong - right).max() > np.abs(right).mean()


def test_a_convolution_behind_an_unknown_type_is_left_out_by_the_tool_and_here(tmp_path: Path) -> None:
    made = convolution(True)
    made.graph.node[1].input[0] = "n"
    made.graph.node.insert(0, node("com.microsoft.Gelu", ["x"], ["n"]))
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert found(made, tmp_path) == []
    dynamic(tmp_path / "model.onnx")


def test_nothing_is_said_where_there_is_nothing_to_quantize(tmp_path: Path) -> None:
    assert found(model([node("Unique", ["x"], ["y"])], [tensor("x", None)], [tensor("y", None)]), tmp_path) == []


def test_a_gemm_without_a_weight_is_passed_over(tmp_path: Path) -> None:
    made = gemm(False)
    made.graph.node.append(node("Gemm", ["y"], ["z"], transB=1))
    assert found(made, tmp_path) == []
