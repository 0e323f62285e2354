"""Weights that the author's own code decodes: DequantizeLinear where ONNX Runtime makes integer products of it.

A linear layer swaps the axes of its weight. Behind DequantizeLinear, the swap keeps ONNX Runtime (1.31) from seeing a
product of codes: it decodes the weight at every run. In front of it, on the codes, it is done once, at load.

Where the input of such a product was not rounded by the author's model, ONNX Runtime takes the pair for a MatMulNBits
and rounds it to int8, unless a session key says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from truecast.dialects.expand import NodeWriter
from truecast.weights.standard import ACTIVATIONS_KEY

SWAP = [1, 0]


def swap_before_decoding(model: ir.Model) -> int:
    """Moves every swap of a decoded weight's axes in front of its DequantizeLinear; returns how many."""
    count = 0
    for node in list(model.graph):
        value = node.inputs[0] if node.op_type == "Transpose" else None
        decoder = None if value is None else value.producer()
        if value is None or decoder is None or not _is_swap(node) or not _is_decoder(decoder):
            continue
        write, axis = NodeWriter(node), decoder.attributes.get("axis")
        turned = write.op("Transpose", [decoder.inputs[0]], {"perm": SWAP})
        attributes = {} if axis is None else {"axis": 1 - axis.as_int() % 2}
        result = write.op("DequantizeLinear", [turned, *decoder.inputs[1:]], attributes)
        result.shape, result.type = node.outputs[0].shape, node.outputs[0].type
        ir.convenience.replace_all_uses_with(node.outputs[0], result, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        count += 1
    return count


def decoding_entries(model: ir.Model) -> Mapping[str, str]:
    """Session keys without which ONNX Runtime would round the inputs of products with decoded weights."""
    for node in model.graph:
        if node.op_type == "MatMul" and _decoder_of(node.inputs[1]) is not None and _decoder_of(node.inputs[0]) is None:
            return {ACTIVATIONS_KEY: "0"}
    return {}


def _decoder_of(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _is_swap(node: ir.Node) -> bool:
    return list(node.attributes["perm"].as_ints()) == SWAP if "perm" in node.attributes else False


def _is_decoder(node: ir.Node) -> bool:
    """Whether a node decodes a weight without blocks."""
    return node.op_type == "DequantizeLinear" and "block_size" not in node.attributes and _is_weight(node.inputs[0])


def _is_weight(value: ir.Value | None) -> bool:
    """Whether a value is made of initializers alone."""
    if value is None:
        return True
    node = value.producer()
    return value.is_initializer() if node is None else all(map(_is_weight, node.inputs))
