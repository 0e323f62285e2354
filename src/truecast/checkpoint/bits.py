"""Codes of a few bits in bytes, the lowest bits first: the one layout that encodings and packings share."""

from __future__ import annotations

import numpy as np

from truecast.checkpoint.model import Array

SLOTS = (2, 4, 8)
"""Widths in bits that a code may take; narrower codes lie in the next wider slot."""
BYTE_BITS = 8


def packed_bytes(width: int, bits: int) -> int:
    """Bytes that hold `width` codes of `bits` each."""
    return -(-width * bits // BYTE_BITS)


def pack(codes: Array, bits: int) -> Array:
    """Codes uint8 [..., width], each below 2^bits → bytes uint8 [..., ceil(width · bits / 8)]; the last is padded."""
    if bits == BYTE_BITS:
        return np.ascontiguousarray(codes, np.uint8)
    per_byte = BYTE_BITS // bits
    if short := -codes.shape[-1] % per_byte:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, short)])
    packed = codes[..., ::per_byte].astype(np.uint8)
    for place in range(1, per_byte):
        packed |= codes[..., place::per_byte].astype(np.uint8) << np.uint8(place * bits)
    return packed


def unpack(packed: Array, bits: int, width: int) -> Array:
    """The inverse of `pack`: uint8 [..., width]."""
    if bits == BYTE_BITS:
        return packed[..., :width]
    per_byte, mask = BYTE_BITS // bits, np.uint8((1 << bits) - 1)
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * per_byte), np.uint8)
    for place in range(per_byte):
        np.bitwise_and(packed >> np.uint8(place * bits), mask, out=codes[..., place::per_byte])
    return codes[..., :width]
