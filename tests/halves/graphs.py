"""Small graphs of 16 bits, written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper

WIDE, BF16, FP16 = TensorProto.FLOAT, TensorProto.BFLOAT16, TensorProto.FLOAT16
SIZES = ["rows", 4]


def graph(
    nodes: Sequence[onnx.NodeProto],
    x: int = WIDE,
    y: int = WIDE,
    weights: Mapping[str, tuple[int, np.ndarray]] | None = None,
    opset: int = 21,
) -> onnx.ModelProto:
    """A graph of those nodes from x to y, [rows, 4] each; weights by name with the dtype they are stored in."""
    inputs = [helper.make_tensor_value_info("x", x, SIZES)]
    outputs = [helper.make_tensor_value_info("y", y, ["any", "size"])]
    stored = [helper.make_tensor(n, d, a.shape, a.ravel().tolist()) for n, (d, a) in (weights or {}).items()]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    body = helper.make_graph(list(nodes), "graph", inputs, outputs, stored)
    return helper.make_model(body, opset_imports=opsets, ir_version=10)


def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """A node with one output, after which it is named."""
    return helper.make_node(kind, list(inputs), [output], name=output, **attributes)


def loaded(model: onnx.ModelProto) -> ir.Model:
    """The same for onnx-ir."""
    return ir.from_proto(model)


def session(model: ir.Model | onnx.ModelProto, level: ort.GraphOptimizationLevel | None = None) -> ort.InferenceSession:
    """A session on the processor; raises what ONNX Runtime raises."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if level is not None:
        options.graph_optimization_level = level
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def kept(model: ir.Model, folder: Path) -> str:
    """Writes a graph into `folder`; returns its name there."""
    ir.save(model, folder / "graph.onnx")
    return "graph.onnx"
