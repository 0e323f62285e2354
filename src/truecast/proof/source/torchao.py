"""torchao's tensor classes by their definitions; the header of the file names the class of each weight.

Int8Tensor, IntxUnpackedToInt8Tensor: (code - zero) · scale of signed codes, a byte each. Float8Tensor: value · scale.
Int4PlainInt32Tensor: unsigned codes, eight a word. Int4Tensor: signed codes, two a byte, code · scale + zero. The last
two store scales and zero points as [groups, N].
Source: https://github.com/pytorch/ao (torchao/quantization/quantize_/workflows).
"""

from __future__ import annotations

import json

import numpy as np

from truecast.proof.operators import Array
from truecast.proof.source.floats import scaled
from truecast.proof.source.words import Parts, Stated, fields, floats, in_blocks, integers, spread

METADATA = "header"
"""Where `Stated` has the metadata of the file's header."""


def weight(module: str, parts: Parts, stated: Stated) -> Array:
    """The weight [out, in] in float32."""
    header = json.loads(stated[METADATA][f"{module}.weight"])
    kind, block = header["_type"], (header.get("_data") or {}).get("block_size")
    codes, scale, zero = parts["_weight_qdata"], parts["_weight_scale"], parts.get("_weight_zero_point")
    known = None if block is None else (int(block[0]), int(block[1]))
    if kind == "Float8Tensor":
        return scaled(codes, scale, known)
    if kind in ("Int4Tensor", "Int4PlainInt32Tensor"):
        assert known is not None and zero is not None
        width = codes.shape[1] * codes.element_size() * 2
        values = fields(integers(codes), 4, width).astype(np.float32)
        scales, points = (spread(floats(table).T, known[1], width) for table in (scale, zero))
        if kind == "Int4PlainInt32Tensor":
            return (values - points) * scales
        return (values - np.float32(16) * (values > 7)) * scales + points
    values, shape = integers(codes).astype(np.float32), (codes.shape[0], codes.shape[1])
    points = np.zeros(shape, np.float32) if zero is None else in_blocks(floats(zero), shape, known)
    return (values - points) * in_blocks(floats(scale), shape, known)
