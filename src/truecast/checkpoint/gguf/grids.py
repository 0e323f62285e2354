"""Block types whose codes are places in a grid: IQ1_S to IQ3_S, as 4-bit codes of a table.

A place in the grid stands for 4 or 8 neighbouring weights, out of two to four bits each; signs (or, for IQ1, the sign
of a small shift) lie apart. Each weight takes one of at most 16 values times the group's scale. So a code is the grid's
magnitude in its lower bits and the sign above, and whole runs of 4 or 8 codes come out of one look-up each.

The grids are those of the gguf package. Functions take the bytes of n blocks, uint8 [n, block bytes].
"""

from __future__ import annotations

from functools import cache

import numpy as np
from gguf import quants

from truecast.checkpoint.gguf.blocks import Blocks, at, low_nibbles
from truecast.checkpoint.model import Array

CODE_BITS = 4
WIDE, LONG = np.dtype("<u2"), np.dtype("<u4")

IQ2_MAGNITUDES = (1.0, 25 / 8, 43 / 8)
"""ggml's grid of 8, 25 and 43, and its scale d · (s + 1/2) / 4 as d · (2s + 1) / 8."""
IQ3_XXS_MAGNITUDES = tuple(value / 4 for value in (4, 12, 20, 28, 36, 44, 52, 62))
"""The same with the scale d · (s + 1/2) / 2 as d · (2s + 1) / 4."""
IQ3_S_MAGNITUDES = (1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0)
IQ1_SHIFT = 1 / 8
"""What is added to the -1, 0 or 1 of a grid, with either sign (IQ1S_DELTA)."""


def signed_table(magnitudes: tuple[float, ...]) -> tuple[float, ...]:
    """What 4-bit codes stand for: magnitudes, and from code 8 on the same below zero."""
    half = (*magnitudes, *[0.0] * (8 - len(magnitudes)))
    return (*half, *(-value for value in half))


IQ2_TABLE, IQ3_XXS_TABLE, IQ3_S_TABLE = map(signed_table, (IQ2_MAGNITUDES, IQ3_XXS_MAGNITUDES, IQ3_S_MAGNITUDES))
IQ1_TABLE = (
    *(step + IQ1_SHIFT for step in (-1, 0, 1)),
    *[0.0] * 5,
    *(step - IQ1_SHIFT for step in (-1, 0, 1)),
    *[0.0] * 5,
)
"""Three steps shifted up, and from code 8 on three shifted down; the rest stand for nothing."""


def iq2_xxs(blocks: Array) -> Array:
    """Codes of IQ2_XXS: per 32 weights four places of a byte each, then four sign sets of 7 bits and a scale."""
    pairs = at(2, LONG, 16)(blocks).reshape(-1, 2)
    places = np.ascontiguousarray(pairs[:, 0]).view(np.uint8).reshape(-1, 4)
    return _packed(blocks, _look_up(_grid("IQ2_XXS"), places) | _look_up(_signs(), _seven_bits(pairs[:, 1])))


def iq2_xs(blocks: Array) -> Array:
    """Codes of IQ2_XS: per 8 weights a place of 9 bits and a sign set of 7."""
    words = at(2, WIDE, 32)(blocks)
    return _packed(blocks, _look_up(_grid("IQ2_XS"), words & 511) | _look_up(_signs(), words >> 9))


def iq2_s(blocks: Array) -> Array:
    """Codes of IQ2_S: places of 8 bits and two more apart, and a byte of signs per 8 weights."""
    upper = blocks[:, 66:74, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
    places = blocks[:, 2:34] | upper.reshape(-1, 32).astype(np.uint16) << 8
    return _packed(blocks, _look_up(_grid("IQ2_S"), places) | _look_up(_sign_bits(), blocks[:, 34:66]))


def iq3_xxs(blocks: Array) -> Array:
    """Codes of IQ3_XXS: places of a byte per 4 weights, then as in IQ2_XXS."""
    signs = _look_up(_signs(), _seven_bits(at(66, LONG, 8)(blocks).reshape(-1)))
    return _packed(blocks, _look_up(_grid("IQ3_XXS"), blocks[:, 2:66])) | _packed(blocks, signs)


def iq3_s(blocks: Array) -> Array:
    """Codes of IQ3_S: places of 8 bits and one more apart per 4 weights, and a byte of signs per 8."""
    upper = np.unpackbits(blocks[:, 66:74], axis=1, bitorder="little")
    places = blocks[:, 2:66] | upper.astype(np.uint16) << 8
    return _packed(blocks, _look_up(_grid("IQ3_S"), places)) | _packed(
        blocks, _look_up(_sign_bits(), blocks[:, 74:106])
    )


def iq1_s(blocks: Array) -> Array:
    """Codes of IQ1_S: places of 8 bits and three more apart; one shift for 32 weights."""
    words = at(34, WIDE, 8)(blocks)[:, :, None]
    upper = words >> np.arange(0, 12, 3, dtype=np.uint16) & 7
    places = blocks[:, 2:34] | upper.reshape(-1, 32) << 8
    shifts = np.repeat(words >> 15, 4, axis=2).reshape(-1, 32)
    return _packed(blocks, _look_up(_grid("IQ1_S"), places) | _ALL_NEGATIVE * shifts)


def iq1_m(blocks: Array) -> Array:
    """Codes of IQ1_M: places of 8 bits and three more apart; one shift for 8 weights."""
    nibbles = (blocks[:, 32:48, None] >> np.array([0, 4], np.uint8)).reshape(-1, 32)
    places = blocks[:, :32] | (nibbles & 7).astype(np.uint16) << 8
    return _packed(blocks, _look_up(_grid("IQ1_M"), places) | _ALL_NEGATIVE * (nibbles >> 3 & 1))


def odd_of_top(start: int, count: int, stride: int) -> Blocks:
    """2s + 1 of the s in the upper four bits of every `stride`-th of the numbers of 32 bits from `start` on."""
    return lambda blocks: _odd(at(start, LONG, count * stride)(blocks)[:, stride - 1 :: stride] >> 28)


def odd_of_nibbles(start: int, stop: int) -> Blocks:
    """2s + 1 of the s in the nibbles of bytes [start, stop), low ones first."""

    def read(blocks: Array) -> Array:
        low, high = low_nibbles(start, stop)(blocks), blocks[:, start:stop] >> 4
        return _odd(np.stack([low, high], axis=2).reshape(len(blocks), -1))

    return read


def iq1_s_odd(blocks: Array) -> Array:
    """2s + 1 of IQ1_S's 8 scales of three bits."""
    return _odd(at(34, WIDE, 8)(blocks) >> 12 & 7)


def iq1_m_odd(blocks: Array) -> Array:
    """2s + 1 of IQ1_M's 16 scales of three bits, four in each number of 16 bits."""
    fields = at(48, WIDE, 4)(blocks)[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7
    return _odd(fields.reshape(len(blocks), -1))


def iq1_m_scale(blocks: Array) -> Array:
    """IQ1_M's float16, of which each of the four numbers holds four bits at its top."""
    quarters = (at(48, WIDE, 4)(blocks) >> 12) << np.arange(0, 16, 4, dtype=np.uint16)
    return np.asarray(np.bitwise_or.reduce(quarters, axis=1, keepdims=True).view("<f2"))


_ALL_NEGATIVE = np.uint32(0x88888888)
"""The sign of eight codes."""


def _odd(scales: Array) -> Array:
    return np.asarray(2 * scales + 1, np.uint8)


def _look_up(table: Array, places: Array) -> Array:
    # Every place is in the table by the width of its field; clipping is the fastest way to leave that unchecked.
    return np.take(table, places, mode="clip")


def _packed(blocks: Array, codes: Array) -> Array:
    """Numbers that hold the codes of several weights, as bytes: [n, bytes]."""
    return np.ascontiguousarray(codes).view(np.uint8).reshape(len(blocks), -1)


def _seven_bits(words: Array) -> Array:
    """The four lowest fields of 7 bits: [..., 4]."""
    return words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127


@cache
def _grid(kind: str) -> Array:
    """By place: the magnitudes of its 8 weights in a number of 32 bits (of its 4 in 16), as 4-bit indices."""
    source = getattr(quants, kind)
    source.init_grid()
    places, together = source.grid_shape
    indices = np.searchsorted(np.array(source.grid_map), source.grid.reshape(places, together)).astype(np.uint64)
    joined = (indices << np.arange(0, CODE_BITS * together, CODE_BITS, dtype=np.uint64)).sum(axis=1)
    return np.asarray(joined, LONG if together == 8 else WIDE)


@cache
def _sign_bits() -> Array:
    """By byte: its bits as the signs of eight codes."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.uint64)
    return np.asarray((bits << np.arange(3, 32, CODE_BITS, dtype=np.uint64)).sum(axis=1), LONG)


@cache
def _signs() -> Array:
    """By 7 bits: the signs of eight codes, of which an even number is negative."""
    return np.asarray(_sign_bits()[np.frombuffer(quants.IQ2_XXS.ksigns, np.uint8)])
