"""A quantized key/value cache: what becomes of a graph whose attention keeps codes instead of floats.

Data flow: the attention operators by layer → the scales of each (`CacheScales`) → the same operators with the scales as
inputs, past and present as codes, and a `Binding` per scale.

A value is code · scale. Codes of 8 bits are int8; of 4 bits, two lie in a byte, the even channel in the low half,
stored plus 8. ONNX Runtime 1.31 computes attention from what the codes stand for, new keys and values included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from truecast.checkpoint.model import Array
from truecast.errors import InputError
from truecast.states import PARTS, StateTensor, is_past
from truecast.weights.binding import Binding, array_binding

CACHE_SCALES = "scales of the quantized cache"
"""Packing of the initializers that hold them."""
ATTENTION = "GroupQueryAttention"
PAST, PRESENT, SCALES = (3, 4), (1, 2), (12, 13)
"""Where GroupQueryAttention has past (inputs), present (outputs) and scales (inputs), key before value."""
KEY, COS_TABLE = 1, 7
DTYPES: Mapping[int, ir.DataType] = {8: ir.DataType.INT8, 4: ir.DataType.UINT8}
"""Elements of a cache of that many bits."""
PER_CHANNEL = "PER_CHANNEL"


@dataclass(frozen=True)
class CacheScales:
    """The scales of one layer's keys and values, float32 [heads, width]; `sources` are the tensors they come from."""

    key: Array
    value: Array
    sources: tuple[str, ...] = ()


def cached_attention(model: ir.Model) -> dict[int, ir.Node]:
    """The attention operators by the number of the layer whose cache they keep.

    Raises:
        InputError: part of the cache is kept by anything else, which could not quantize it.
    """
    nodes: dict[int, ir.Node] = {}
    for node in model.graph:
        taken = [node.inputs[index] for index in PAST] if node.op_type == ATTENTION else []
        if taken and all(value is not None and value.is_graph_input() for value in taken):
            nodes[layer_of(node)] = node
    kept = {node.inputs[index] for node in nodes.values() for index in PAST}
    past = [value for value in model.graph.inputs if is_past(value.name)]
    fixed = [v.name for v in past if (state := StateTensor.named(v.name)) is not None and state.part not in PARTS]
    if fixed:
        raise InputError(
            f"--kv-cache needs layers that carry keys and values only, and this model carries {fixed[0]} as well; "
            "leave --kv-cache out."
        )
    others = [value.name for value in past if value not in kept]
    if others or not nodes:
        what = f"{others[0]} is" if others else "there is none, or it is"
        raise InputError(
            f"--kv-cache needs a cache that {ATTENTION} keeps, and in this model {what} kept by other operators; "
            "leave --kv-cache out, or choose the target onnxruntime or genai."
        )
    return nodes


def layer_of(node: ir.Node) -> int:
    """The layer whose cache an attention operator keeps."""
    past = node.inputs[PAST[0]]
    assert past is not None and past.name is not None
    return int(past.name.split(".")[1])


def quantize_cache(model: ir.Model, scales: Mapping[int, CacheScales], bits: int) -> list[Binding]:
    """Makes every attention operator keep codes of `bits`; returns the bindings of the scales, key before value."""
    bindings = []
    for layer, node in cached_attention(model).items():
        made = [_binding(layer, part, scales[layer]) for part in PARTS]
        node.resize_inputs(max(SCALES) + 1)
        for index, binding in zip(SCALES, made, strict=True):
            operand = binding.operands[0]
            value = ir.Value(name=operand.name, shape=ir.Shape(operand.shape), type=ir.TensorType(operand.dtype))
            model.graph.initializers.add(value)
            node.replace_input_with(index, value)
        node.attributes.add(ir.AttrInt64("kv_cache_bit_width", bits))
        for part in PARTS:
            node.attributes.add(ir.AttrString(f"{part[0]}_quant_type", PER_CHANNEL))
        for kept in (*(node.inputs[index] for index in PAST), *(node.outputs[index] for index in PRESENT)):
            assert kept is not None
            _store_codes(kept, bits)
        bindings += made
    return bindings


def _binding(layer: int, part: str, scales: CacheScales) -> Binding:
    """One scale per head and channel, [1, heads, 1, width]."""
    array: Array = (scales.key if part == "key" else scales.value).astype(np.float32)
    shaped = np.ascontiguousarray(array.reshape(1, array.shape[0], 1, array.shape[1]))
    binding = array_binding(f"cache.{layer}.{part}_scale", shaped, CACHE_SCALES)
    sources = tuple(name for name in scales.sources if name.rpartition(".")[2].startswith(part[0]))
    return replace(binding, sources=sources, own=bool(sources))


def _store_codes(value: ir.Value, bits: int) -> None:
    assert value.shape is not None and isinstance(value.shape[-1], int)
    width = value.shape[-1] * bits // 8 if bits < 8 else value.shape[-1]
    value.shape = ir.Shape([*value.shape[:-1], width])
    value.type = ir.TensorType(DTYPES[bits])


def rotation_partners(node: ir.Node) -> Array | None:
    """For every channel of a key, the one it is rotated with (itself where it is not); None when that is not known."""
    past = node.inputs[PAST[0]]
    assert past is not None and past.shape is not None
    width = past.shape[-1]
    assert isinstance(width, int)
    if past.dtype == DTYPES[4]:
        width *= 2
    if (rotary := node.attributes.get("do_rotary")) is not None and rotary.as_int():
        table = node.inputs[COS_TABLE]
        assert table is not None and table.shape is not None and isinstance(table.shape[-1], int)
        return _partners(width, 2 * table.shape[-1], bool(node.attributes["rotary_interleaved"].as_int()))
    return _partners_outside(node.inputs[KEY], width)


MOVES = frozenset({"Reshape", "Transpose", "Identity", "Cast", "Split", "Slice", "Squeeze", "Unsqueeze"})
"""Operators that move numbers."""
NORMS = frozenset({"SimplifiedLayerNormalization", "LayerNormalization"})
PRODUCTS = frozenset({"MatMul", "MatMulNBits", "MatMulBnb4", "FusedMatMul", "Gemm"})
"""Operators between which and attention a rotation would have been seen."""


def _partners_outside(value: ir.Value | None, width: int) -> Array | None:
    """The same where the operator does not rotate: by the operators that made the keys."""
    node, normed = (None if value is None else value.producer()), False
    while node is not None and node.op_type in MOVES | NORMS and node.inputs[0] is not None:
        normed = normed or node.op_type in NORMS
        node = node.inputs[0].producer()
    if value is None or (node is not None and (node.op_type in PRODUCTS or _adds_bias(node))):
        return _partners(width, 0, False)
    if node is None or node.op_type != "RotaryEmbedding" or normed:  # a norm behind it scales channels apart
        return None
    rotated = node.attributes["rotary_embedding_dim"].as_int() or width
    return _partners(width, rotated, bool(node.attributes["interleaved"].as_int()))


def _adds_bias(node: ir.Node) -> bool:
    return node.op_type == "Add" and any(value is not None and value.is_initializer() for value in node.inputs)


def _partners(width: int, rotated: int, interleaved: bool) -> Array:
    """Channels [0, rotated) are rotated in pairs: neighbours, or one of each half."""
    partners = np.arange(width)
    if interleaved:
        partners[:rotated] ^= 1
    else:
        partners[:rotated] = np.roll(partners[:rotated], rotated // 2)
    return partners
