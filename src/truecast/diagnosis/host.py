"""What this machine's integer kernels do, measured: the processor's flags do not say which kernel runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

INNER = 64
"""Products summed by the probe: enough for every kernel's vector width."""
NO_ENTRIES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Host:
    """The machine; `saturates` says that products of uint8 with full-range int8 come out wrong here."""

    saturates: bool = False


@cache
def this_host() -> Host:
    """Measures this machine, in milliseconds."""
    return Host(saturates=integer_products_differ())


def integer_products_differ(entries: Mapping[str, str] = NO_ENTRIES) -> bool:
    """Whether MatMulInteger of uint8 with full-range int8 differs from exact integer arithmetic on this processor."""
    left = np.full((2, INNER), 255, np.uint8)
    right = np.full((INNER, 16), 127, np.int8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(_probe(right), options, providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"left": left})
    return bool(np.any(product != left.astype(np.int32) @ right.astype(np.int32)))


def _probe(right: np.ndarray) -> bytes:
    node = helper.make_node("MatMulInteger", ["left", "right"], ["product"])
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("left", TensorProto.UINT8, ["rows", INNER])],
        [helper.make_tensor_value_info("product", TensorProto.INT32, ["rows", right.shape[1]])],
        [onnx.numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
