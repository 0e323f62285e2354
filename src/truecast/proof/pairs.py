"""Weights that a graph decodes with ONNX's own DequantizeLinear for a product.

Codes, scales and zero points have their axes swapped in front of it; they are read as they are before.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from truecast.proof.constants import NotByRowsError, RowsOf, base_of, rows_of, untransposed
from truecast.proof.operators import BYTE_BITS, Array

PRODUCT_AXIS = 0
"""Axis of the blocks: the width, which comes first in the right factor of a product."""


def decoder_inputs(node: ir.Node) -> list[ir.Value | None]:
    """Codes, scales and zero points of DequantizeLinear as [rows, …]; the last may be None."""
    if node.attributes["axis"].as_int() != PRODUCT_AXIS or node.attributes.get("block_size") is None:
        raise NotByRowsError(node.op_type)
    return [*map(untransposed, node.inputs), None][:3]


def codes_of(node: ir.Node) -> tuple[RowsOf, int]:
    """Rows of the codes of DequantizeLinear, and how many bits the file has for each."""
    codes = decoder_inputs(node)[0]
    base = base_of(codes)
    if codes is None or base is None or base.const_value is None:
        raise NotByRowsError(node.op_type)
    read, tensor = rows_of(codes), base.const_value
    return read, tensor.nbytes * BYTE_BITS // (int(tensor.shape.numpy()[0]) * read(0, 1).shape[1])


def scale_dtype(node: ir.Node) -> np.dtype[np.generic]:
    """The dtype of the scales of DequantizeLinear."""
    scales = decoder_inputs(node)[1]
    if scales is None:
        raise NotByRowsError(node.op_type)
    return rows_of(scales)(0, 1).dtype


def has_zero_points(node: ir.Node) -> bool:
    """Whether blocks have zero points of their own."""
    return _zero_points(decoder_inputs(node)[2])[0] is None


def decoded(node: ir.Node, codes: RowsOf) -> RowsOf:
    """Rows of (code - zero) · scale as DequantizeLinear computes them, float32."""
    _, scales, points = decoder_inputs(node)
    if scales is None:
        raise NotByRowsError(node.op_type)
    block, scale_rows = node.attributes["block_size"].as_int(), rows_of(scales)
    _, zeros = _zero_points(points)

    def read(start: int, stop: int) -> Array:
        values, scale = codes(start, stop).astype(np.float32), scale_rows(start, stop).astype(np.float32)
        if values.shape[1] != scale.shape[1] * block:
            raise NotByRowsError(f"{values.shape[1]} codes in {scale.shape[1]} blocks of {block}")
        centred = values.reshape(*scale.shape, block) - zeros(start, stop).astype(np.float32)[..., None]
        result: Array = (centred * scale[..., None]).reshape(values.shape)
        return result

    return read


def _zero_points(value: ir.Value | None) -> tuple[Array | None, RowsOf]:
    """The one number [1, 1] that all zero points are, if there is one, and zero points [rows, blocks] or [rows, 1]."""
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type == "Cast":
        return _zero_points(producer.inputs[0])
    one = np.zeros((1, 1), np.uint8) if value is None else _one_number(producer)
    if one is None:
        assert value is not None
        return None, rows_of(value)
    number = one
    return number, lambda start, stop: np.repeat(number, stop - start, 0)


def _one_number(node: ir.Node | None) -> Array | None:
    """A scalar that was expanded, as [1, 1]."""
    if node is None or node.op_type != "Expand" or node.inputs[0] is None:
        return None
    scalar = ir.convenience.get_const_tensor(node.inputs[0])
    return None if scalar is None or scalar.size != 1 else scalar.numpy().reshape(1, 1)


def filled_up(value: ir.Value | None) -> tuple[ir.Value | None, int]:
    """What a product's input was before zeros were put at its end, and how many; an author's own Pad is an input."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Pad":
        return value, 0
    given = [*node.inputs, None, None][1:4:2]
    sizes, axes = (None if x is None else ir.convenience.get_const_tensor(x) for x in given)
    if sizes is None or axes is None or axes.numpy().tolist() != [-1] or sizes.numpy()[0] != 0:
        return value, 0
    return node.inputs[0], int(sizes.numpy()[1])
