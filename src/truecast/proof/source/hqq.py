"""HQQ by its definition: w = ((codes - zero) · scale) of the group matrix, reshaped to the weight.

The group matrix is [groups, group] (axis 1) or [group, groups] (axis 0). Its rows are packed in strides, the first in
the highest bits: of two codes a byte, row r has the high bits and row r + half of them the low ones.
Source: https://github.com/dropbox/hqq (hqq/core/quantize.py, hqq/core/bitpack.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from truecast.proof.operators import Array
from truecast.proof.source.words import Parts, Stated, floats, integers, raw

PACKINGS = {"8bit_u8": (8, 1), "4bit_u8": (4, 2), "3bit_32": (3, 10), "2bit_u8": (2, 4), "1bit_u8": (1, 8)}
"""Bits of a code, and codes of a word."""


def weight(module: str, parts: Parts, stated: Stated) -> Array:
    """The weight [out, in] in float32."""
    shape, axis, group = (integers(parts[name]).reshape(-1).tolist() for name in ("shape", "axis", "group_size"))
    bits, count = PACKINGS[integers(parts["packing"]).astype(np.uint8).tobytes().decode()]
    groups = int(np.prod(shape)) // group[0]
    rows, columns = (groups, group[0]) if axis[0] else (group[0], groups)
    word = np.int32 if count == PACKINGS["3bit_32"][1] else np.uint8
    words: NDArray[Any] = raw(parts["W_q"]).view(word).reshape(-1, columns)
    places = [words >> (bits * (count - 1 - place)) & ((1 << bits) - 1) for place in range(count)]
    codes = np.concatenate(places)[:rows].astype(np.float32)
    both = None if "zero_scale" not in parts else floats(parts["zero_scale"]).reshape(2, -1)
    zero, scale = both if both is not None else (floats(parts[name]).reshape(-1) for name in ("zero", "scale"))
    turned = (-1, 1) if axis[0] else (1, -1)
    values: Array = (codes - zero.reshape(turned)) * scale.reshape(turned)
    return values.reshape(shape)
