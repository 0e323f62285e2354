"""Operators that a lowering emits, run in ONNX Runtime: so a test can compare them with the author's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor

from truecast.dialects.ort.expand import expand


def run_graph(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a small graph, on the CPU; unused feeds are left out."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    results: list[np.ndarray] = session.run(None, {name: array for name, array in feeds.items() if name in names})
    return results


def run_operator(
    name: str, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any], dtypes: Sequence[torch.dtype]
) -> list[Tensor]:
    """The results of one operator, `domain::type` or `type`; abstract ones are expanded first.

    A graph of its own has the tensors as inputs `0`, `1`, … and `input_ids` of the first tensor's first two sizes,
    which rotation counts its rows by.
    """
    domain, _, kind = name.rpartition("::")
    arrays = {str(i): x.detach().numpy() for i, x in enumerate(inputs) if x is not None}
    arrays["input_ids"] = np.zeros(next(iter(arrays.values())).shape[:2], np.int64)
    values = {key: _value(key, array) for key, array in arrays.items()}
    outputs = [ir.Value(name=f"out{i}", type=ir.TensorType(_ir_dtype(dtype))) for i, dtype in enumerate(dtypes)]
    node = ir.node(kind, [values.get(str(i)) for i in range(len(inputs))], attributes, domain=domain, outputs=outputs)
    ends = [ir.node("Identity", [output], outputs=[_like(output, i)]) for i, output in enumerate(outputs)]
    results = [end.outputs[0] for end in ends]
    graph = ir.Graph(list(values.values()), results, nodes=[node, *ends], opset_imports={"": 21}, name="one")
    model = ir.Model(graph, ir_version=10)
    expand(model)
    return [torch.from_numpy(array) for array in run_graph(model, arrays)]


def _value(name: str, array: np.ndarray) -> ir.Value:
    dtype = ir.DataType.from_numpy(array.dtype)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype))


def _like(value: ir.Value, index: int) -> ir.Value:
    return ir.Value(name=f"result{index}", type=value.type)


def _ir_dtype(dtype: torch.dtype) -> ir.DataType:
    return ir.DataType.from_numpy(torch.zeros(0, dtype=dtype).numpy().dtype)
