"""The artifact's graph with the quantization of its cache undone, in memory.

A quantized cache changes every number behind it, so that nothing could be compared tightly. With floats in its place
the same graph, weights and attention are held to the tight rule; the cache is then proven by itself (`cache`).
"""

from __future__ import annotations

import onnx_ir as ir

from truecast.artifact import GraphInfo, TensorInfo
from truecast.states import StateTensor

ATTENTION, PAST, PRESENT, SCALES = "GroupQueryAttention", (3, 4), (1, 2), (12, 13)
QUANTIZING = ("k_quant_type", "v_quant_type", "kv_cache_bit_width")
"""Attributes that make the operator keep codes."""


def coded_bits(info: GraphInfo) -> int | None:
    """Bits of a code of the cache; None where it keeps floats."""
    return None if info.cache is None else info.cache.bits


def with_float_cache(model: ir.Model, info: GraphInfo) -> GraphInfo:
    """Changes the graph so that it keeps floats; returns what is then to be said of it."""
    if info.cache is None or info.cache.stands_for is None:
        return info
    factor, dtype = info.cache.values_per_element, info.cache.stands_for
    for node in model.graph:
        if node.op_type != ATTENTION:
            continue
        for name in QUANTIZING:
            node.attributes.pop(name, None)
        for value in (*(node.inputs[index] for index in PAST), *(node.outputs[index] for index in PRESENT)):
            if value is not None and value.shape is not None and value.dtype is not None:
                _become_floats(value, ir.DataType[dtype.replace("float32", "float").upper()], factor)
        for index in SCALES:
            if index < len(node.inputs):
                node.replace_input_with(index, None)
    return float_info(info)


def _become_floats(value: ir.Value, dtype: ir.DataType, factor: int) -> None:
    assert value.shape is not None
    *others, width = value.shape
    value.shape = ir.Shape([*others, width * factor if isinstance(width, int) else width])
    value.type = ir.TensorType(dtype)


def float_info(info: GraphInfo) -> GraphInfo:
    """What is to be said of a graph whose cache holds the floats that its codes stand for."""
    assert info.cache is not None and info.cache.stands_for is not None
    factor, dtype = info.cache.values_per_element, info.cache.stands_for
    cache = info.cache.model_copy(update={"dtype": dtype, "bits": None, "stands_for": None})

    def floats(tensor: TensorInfo) -> TensorInfo:
        if StateTensor.named(tensor.name) is None:
            return tensor
        *others, width = tensor.shape
        return tensor.model_copy(update={"dtype": dtype, "shape": [*others, width * factor]})

    inputs, outputs = ([floats(tensor) for tensor in tensors] for tensors in (info.inputs, info.outputs))
    return info.model_copy(update={"cache": cache, "inputs": inputs, "outputs": outputs})
