"""Fixes are named only where they help, and refer to no other finding."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.hazards.building import constant, linear, model, node, rows, save, tensor
from truecast.diagnosis import RULES, diagnose

LONG, BOOL = TensorProto.INT64, TensorProto.BOOL


def one(operator: str, opset: int, dtype: int = TensorProto.FLOAT, result: int | None = None) -> onnx.ModelProto:
    return model([node(operator, ["x"], ["y"])], [rows("x", dtype)], [tensor("y", None, result or dtype)], opset=opset)


def with_constant(
    operator: str, value: object, dtype: type = np.float32, source: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    return model(
        [node(operator, ["x", "c"], ["y"])], [rows("x", source)], [tensor("y", None)], [constant("c", value, dtype)]
    )


def pieces() -> onnx.ModelProto:
    nodes = [node("SplitToSequence", ["x"], ["s"], axis=0), node("SequenceAt", ["s", "i"], ["y"])]
    return model(nodes, [rows()], [tensor("y", None)], [constant("i", 0, np.int64)])


def newer_beside() -> onnx.ModelProto:
    """Elu beside an operator that the older opset does not have."""
    return model([node("Elu", ["x"], ["n"]), node("Swish", ["n"], ["y"])], [rows()], [rows("y")], opset=24)


def weights_only_convolution() -> onnx.ModelProto:
    kernel, scale = constant("q", np.ones((8, 4, 8, 8)), np.int8), constant("s", 0.1)
    nodes = [node("DequantizeLinear", ["q", "s"], ["w"]), node("Conv", ["x", "w"], ["y"])]
    return model(nodes, [tensor("x", ["batch", 4, 9, 9])], [tensor("y", ["batch", 8, 2, 2])], [kernel, scale])


def nothing_quantized() -> onnx.ModelProto:
    made = linear()
    made.producer_name = "onnx.quantize"
    return made


WAYS: dict[str, tuple[str, str, Callable[[], onnx.ModelProto], str]] = {
    "older opset": ("TC107", "cuda", lambda: one("Elu", 22), "Export at opset 21 or lower"),
    "older opset lacks the rest": ("TC107", "cuda", newer_beside, "at an opset for this model"),
    "none at any opset": ("TC107", "cuda", pieces, "No version of SplitToSequence has a kernel there: write it"),
    "other dtypes": (
        "TC107",
        "cuda",
        lambda: with_constant("Pad", [0, 0, 0, 1], np.int64, LONG),
        "(bool, double, float,",
    ),
    "int32 bias": (
        "TC107",
        "cuda",
        lambda: with_constant("DequantizeLinear", 0.1, source=TensorProto.INT32),
        "QuantizeBias",
    ),
    "no kernel of a dtype": ("TC106", "cpu", lambda: one("NonZero", 13, TensorProto.INT16, LONG), "for other dtypes"),
    "from a later opset": ("TC103", "cpu", lambda: one("Swish", 20), "Swish is from opset 24"),
    "gone": ("TC103", "cpu", lambda: with_constant("Upsample", [1, 1]), "Upsample is gone since opset 10"),
    "known nowhere": ("TC103", "cpu", lambda: one("Nonsense", 20), "no Nonsense in ai.onnx at any opset"),
    "dtype of no version": ("TC405", "cpu", lambda: one("Not", 20, result=BOOL), "no version of it takes the dtype"),
    "dtype of a later version": ("TC405", "cpu", lambda: one("ReduceMax", 18, BOOL), "export at opset 20"),
    "a convolution's weight alone": ("TC202", "cpu", weights_only_convolution, "Quantize the input and the output"),
    "a quantizer that found nothing": ("TC201", "cpu", nothing_quantized, "op_types_to_quantize=['MatMul', 'Gemm']"),
    "float64 fed": ("TC403", "cpu", lambda: one("Sqrt", 20, TensorProto.DOUBLE), "Export with float32 inputs"),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_fix_is_one_that_helps(name: str, tmp_path: Path) -> None:
    code, provider, make, words = WAYS[name]
    fixes = {finding.code: finding.fix for finding in diagnose(save(make(), tmp_path), provider).findings}
    assert words in fixes[code]


def test_an_export_at_the_opset_that_is_named_has_the_kernel(tmp_path: Path) -> None:
    assert diagnose(save(one("Elu", 21), tmp_path), "cuda").findings == ()


def test_no_rule_refers_to_the_finding_of_another() -> None:
    assert [rule.code for rule in RULES if re.search(r"TC\d|errors above", f"{rule.cost} {rule.fix}")] == []
