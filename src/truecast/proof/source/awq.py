"""AWQ by its definition: w[n, k] = scale[n, g] · (code[n, k] - zero[n, g]), 4 bits, with g = k // group.

| layout | codes | zero points |
|---|---|---|
| gemm | int32 [K, N / 8]: nibble i of a word is row 8c + ORDER[i] | int32 [groups, N / 8], likewise |
| gemv | int32 [N, K / 8]: nibbles in order | int32 [N, words], likewise; scales [N, 8 · words] |
| gemv_fast, llm-awq | int16 [N / 4, K], see `_fast` | floats [groups, N] to add: -zero · scale |

Source: https://github.com/casper-hansen/AutoAWQ (awq/utils/packing_utils.py, awq/modules/linear).
"""

from __future__ import annotations

import numpy as np

from truecast.proof.operators import Array
from truecast.proof.source.gptq import settings
from truecast.proof.source.words import Parts, Stated, fields, floats, integers, spread

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
CHUNK, TOGETHER = 64, 4
"""gemv_fast: columns of a chunk, and rows that lie in it together."""


def weight(module: str, parts: Parts, stated: Stated) -> Array:
    """The weight [N, K] in float32."""
    words, scales = integers(parts["qweight"]), floats(parts["scales"])
    zeros = parts["qzeros"] if "qzeros" in parts else parts["scaled_zeros"]
    group = int(settings(module, stated).get("group_size") or stated.get("q_group_size") or -1)
    if words.dtype == np.int16:
        width = words.shape[1]
        group = group if group > 0 else width
        values: Array = _fast(words).astype(np.float32) * spread(scales.T, group, width)
        return values + spread(floats(zeros).T, group, width)
    points = integers(zeros)
    if str(stated.get("version", "")).lower() == "gemv":
        width = words.shape[1] * 8
        group = group if group > 0 else width
        codes, points = fields(words, 4, width), fields(points, 4, scales.shape[1])
    else:
        codes, points, scales = _columns(words).T, _columns(points).T, scales.T
        width = codes.shape[1]
        group = width // scales.shape[1]
    known = -(-width // group)
    points, scales = points[:, :known].astype(np.float32), scales[:, :known]
    return (codes.astype(np.float32) - spread(points, group, width)) * spread(scales, group, width)


def _columns(words: Array) -> Array:
    """Nibbles of words in their order: int32 [rows, n] → uint8 [rows, 8 · n]."""
    nibbles = fields(words[..., None], 4, 8)
    result = np.empty_like(nibbles)
    for place, column in enumerate(ORDER):
        result[..., column] = nibbles[..., place]
    return result.reshape(len(words), -1)


def _fast(words: Array) -> Array:
    """Codes of gemv_fast, int16 [N / 4, K] → uint8 [N, K].

    Of the 64 columns of a chunk, column k of row r (0 to 3) is nibble 64r + p of the chunk, where column k of each 32
    has p = 8 · ((k mod 8) // 2) + 4 · (k mod 2) + k // 8, and 32 more in the second half.
    """
    quarters, width = words.shape
    nibbles = fields(words.reshape(quarters, -1, CHUNK), 4, CHUNK * TOGETHER)
    columns = np.arange(CHUNK)
    k = columns % 32
    place = 8 * ((k % 8) // 2) + 4 * (k % 2) + k // 8 + columns // 32 * 32
    rows = [nibbles[:, :, CHUNK * row + place] for row in range(TOGETHER)]
    return np.stack(rows, 1).reshape(quarters * TOGETHER, width)
