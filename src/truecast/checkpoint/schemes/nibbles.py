"""Words of eight 4-bit codes that belong to neighbouring rows, as AWQ and Quark store a weight [in, out / 8].

Data flow: words of the columns of some rows → codes along each of these rows, two a byte; zero points one a byte.
"""

from __future__ import annotations

import numpy as np

from truecast.checkpoint.bits import unpack
from truecast.checkpoint.model import Array, Reader, StoredTensor
from truecast.checkpoint.schemes.parts import common_value, in_runs
from truecast.checkpoint.schemes.words import as_bytes

BITS = 4
PER_WORD = 8
"""Codes in a 32-bit word."""
SIGN, SIGNS = 0x08, 0x88
"""The sign bit of a code, and of two in a byte: flipping it adds 8 to a signed code."""
Places = tuple[int, ...]
"""Which of eight rows each nibble of a word belongs to, from the lowest."""
PLAIN: Places = (0, 1, 2, 3, 4, 5, 6, 7)
INTERLEAVED: Places = (0, 2, 4, 6, 1, 3, 5, 7)
LOW, HIGH = np.uint32(0x0F0F0F0F), np.uint32(0xF0F0F0F0)
TILE = 32
"""Words turned at once: with their eight rows each they stay in the nearest cache (measured 1.1 GB/s; all: 0.25)."""


def row_codes(stored: StoredTensor, places: Places, flipped: int = 0) -> Reader:
    """Codes of words int32 [width, rows / 8], two a byte: rows → uint8 [rows, ceil(width / 2)], some bits `flipped`."""

    def read(first: int, last: int) -> Array:
        rows = turned_nibbles(stored.rows()[:, first:last].view(np.uint32), places)
        return np.bitwise_xor(rows, np.uint8(flipped), out=rows) if flipped else rows

    return in_runs(PER_WORD, read)


def row_zeros(stored: StoredTensor, places: Places, rows: int, flipped: int = 0) -> int | Reader:
    """Zero points of words int32 [groups, rows / 8]: the one number that all are, or rows → uint8 [rows, groups]."""

    def read(first: int, last: int) -> Array:
        return _zero_points(stored.rows()[:, first:last], places) ^ np.uint8(flipped)

    one = common_value(stored, _zero_points(stored.rows(0, 1), places)[:rows, 0] ^ np.uint8(flipped))
    return in_runs(PER_WORD, read) if one is None else one


def turned_nibbles(words: Array, places: Places) -> Array:
    """Words uint32 [width, n] → packed codes uint8 [8 · n, ceil(width / 2)].

    Two columns at a time: the low halves of the bytes of both words make four bytes of the result, the high halves
    four more.
    """
    width, count = words.shape
    if width % 2:
        words = np.concatenate([words, np.zeros((1, count), np.uint32)])
    rows = np.empty((count, PER_WORD, len(words) // 2), np.uint8)
    for start in range(0, count, TILE):
        left, right = words[0::2, start : start + TILE], words[1::2, start : start + TILE]
        for halves, pairs in (
            (places[0::2], left & LOW | (right & LOW) << np.uint32(BITS)),
            (places[1::2], left >> np.uint32(BITS) & LOW | right & HIGH),
        ):
            byte = pairs.view(np.uint8).reshape(*pairs.shape, len(halves))
            rows[start : start + TILE, halves] = byte.transpose(1, 2, 0)
    return rows.reshape(PER_WORD * count, len(words) // 2)


def _zero_points(words: Array, places: Places) -> Array:
    """Words int32 [groups, n] → uint8 [8 · n, groups]."""
    groups, count = words.shape
    nibbles = unpack(as_bytes(words), BITS, PER_WORD * count).reshape(groups, count, PER_WORD)
    zeros = np.empty((count, PER_WORD, groups), np.uint8)
    zeros[:, places] = nibbles.transpose(1, 2, 0)
    return zeros.reshape(PER_WORD * count, groups)
