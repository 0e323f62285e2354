"""bitsandbytes by its definition: NF4 and FP4 in blocks of the flattened weight, and rows of 8-bit integers.

4 bits: two codes a byte, the first in the high bits; w = table[code] · absmax[block]. With double quantization, absmax
is itself table[code] · absmax of 256 + an offset. 8 bits: w = code · SCB[row] / 127.
Source: https://github.com/bitsandbytes-foundation/bitsandbytes (bitsandbytes/functional.py).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from truecast.proof.operators import Array
from truecast.proof.source.words import Parts, Stated, floats, integers, raw

PER_127 = np.float32(7.874015718698502e-3)
"""1/127 as `int8_vectorwise_dequant` has it."""


def weight(module: str, parts: Parts, stated: Stated) -> Array:
    """The weight [out, in] in float32."""
    if "SCB" in parts:
        scale = floats(parts["SCB"]).reshape(-1, 1)
        rows: Array = integers(parts["weight"]).astype(np.float32) * scale * PER_127
        return rows
    said = next(json.loads(raw(tensor).tobytes()) for name, tensor in parts.items() if "bitsandbytes__" in name)
    shape, block = tuple(said["shape"]), int(said["blocksize"])
    count = int(np.prod(shape))
    stored = raw(parts["weight"])
    codes = np.stack([stored >> np.uint8(4), stored & np.uint8(15)], -1).reshape(-1)[:count]
    scales = _absmax(parts, said)
    values: Array = floats(parts["weight.quant_map"])[codes] * np.repeat(scales, block)[:count]
    return values.reshape(shape)


def _absmax(parts: Parts, said: dict[str, Any]) -> Array:
    stored = parts["weight.absmax"]
    if "weight.nested_absmax" not in parts:
        return floats(stored).reshape(-1)
    codes, outer = integers(stored).reshape(-1), floats(parts["weight.nested_absmax"]).reshape(-1)
    every = np.repeat(outer, int(said["nested_blocksize"]))[: len(codes)]
    values: Array = floats(parts["weight.nested_quant_map"]).reshape(-1)[codes] * every
    return values + np.float32(said["nested_offset"])
