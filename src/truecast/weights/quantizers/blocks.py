"""What the methods share: blocks as columns, rounding to nearest, and never being worse than it.

A column is one block, so that every step of a search is one operation on long rows. Only operations that IEEE 754
rounds exactly are used, and sums run down the columns one by one: the results are the same bits on every processor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from truecast.checkpoint.bits import pack
from truecast.checkpoint.model import Array
from truecast.weights.quantize import blocks_per_row

PIECE_WEIGHTS = 1 << 16
"""Weights searched at once: 256 KiB of float32, so that a search's dozen arrays stay in the second-level cache."""


@dataclass(frozen=True)
class Quantized:
    """Rows as codes, the lowest bits first.

    codes: uint8 [n, blocks, block · bits / 8]. scales: float32 [n, blocks]. zeros: uint8 [n, ceil(blocks · bits / 8)],
    packed; None where every zero point is 2^(bits-1). offsets: float32 [n, blocks], or None.
    """

    codes: Array
    scales: Array
    zeros: Array | None = None
    offsets: Array | None = None


@dataclass(frozen=True)
class Columns:
    """Blocks as columns: (code - zero) · scale. `codes` float32 [block, n] whole, `scale` and `zero` float32 [n]."""

    codes: Array
    scale: Array
    zero: Array

    def error(self, x: Array) -> Array:
        """Sum of squared errors of each column, float32 [n]."""
        error = (self.codes - self.zero) * self.scale - x
        return squares(error)

    def chosen(self, other: Columns, which: Array) -> Columns:
        """This one's columns, the other's where `which` [n] says so."""
        return Columns(
            np.where(which, other.codes, self.codes),
            np.where(which, other.scale, self.scale),
            np.where(which, other.zero, self.zero),
        )


Search = Callable[[Array, int], Columns]
"""Columns float32 [block, n], the largest weight of each from 1/2 to 1 or 0, and the largest code → the blocks."""


def squares(x: Array) -> Array:
    """Σ x² down the columns."""
    total: Array = np.add.reduce(x * x, axis=0)
    return total


def nearest(x: Array, scale: Array, zero: Array, top: int) -> Array:
    """The nearest code of each weight."""
    codes: Array = np.clip(np.rint(x / scale + zero), 0, top)
    return codes


def plain(x: Array, top: int) -> Columns:
    """Asymmetric rounding to nearest over the range of a block and zero, its zero point a code; no error above half."""
    low, high = np.minimum(x.min(0), 0), np.maximum(x.max(0), 0)
    scale = (high - low) / np.float32(top)
    scale = np.where(high > low, scale, np.float32(1))
    zero = np.rint(-low / scale)
    return Columns(nearest(x, scale, zero, top), scale, zero)


def symmetric(x: Array, top: int) -> Columns:
    """Rounding to nearest around the middle code; the weight farthest from zero gets code 0."""
    high, low = x.max(0), x.min(0)
    extreme, middle = np.where(high >= -low, high, low), np.float32((top + 1) // 2)
    scale = np.where(extreme != 0, extreme, np.float32(1)) / -middle
    zero = np.full_like(scale, middle)
    return Columns(nearest(x, scale, zero, top), scale, zero)


def no_worse(found: Columns, x: Array, top: int) -> Columns:
    """What a search found, but rounding to nearest where that leaves the smaller squared error.

    A search minimizes another norm, or from a start that its last step leaves; with this, the proof can bound every
    block from the checkpoint alone, and no block is worse than round to nearest leaves it.
    """
    best, least = found, found.error(x)
    for rounded in (plain(x, top), symmetric(x, top)):
        error = rounded.error(x)
        better = error < least
        best, least = best.chosen(rounded, better), np.where(better, error, least)
    return best


def searched(rows: Array, bits: int, block: int, search: Search) -> tuple[Array, Array, Array]:
    """Packed codes uint8 [n, blocks, block · bits / 8], scales and zero points float32 [n, blocks]."""
    count, width = rows.shape
    blocks = blocks_per_row(width, block)
    filled = np.pad(rows, ((0, 0), (0, blocks * block - width))).reshape(-1, block)
    step = max(1, PIECE_WEIGHTS // block)
    top = (1 << bits) - 1
    pieces = []
    for start in range(0, len(filled), step):
        x = np.ascontiguousarray(filled[start : start + step].T, np.float32)
        exponent = np.frexp(np.abs(x).max(0))[1]  # so that squares neither vanish nor overflow; exact
        x = np.ldexp(x, -exponent)
        found = no_worse(search(x, top), x, top)
        pieces.append((pack(found.codes.T.astype(np.uint8), bits), np.ldexp(found.scale, exponent), found.zero))
    codes, scales, zeros = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return codes.reshape(count, blocks, -1), scales.reshape(count, blocks), zeros.reshape(count, blocks)
