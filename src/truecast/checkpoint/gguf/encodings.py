"""GGUF's block types as encodings: the codes and scales of a matrix, shuffled out of its blocks and never decoded.

Data flow: rows of raw blocks → `Layout` of the block type → one reader each for codes, scale factors and offsets.

A block holds its own scales beside its codes, and orders the codes for llama.cpp's kernels; an encoding wants each kind
apart, in the order of the weights. Every layout gives, by the formula of `Affine` or `Codebook`, the very float32
values that the gguf package's dequantizer gives. Where the block's offset codes leave room in an 8-bit slot they are
moved around its middle, so that operators which assume the zero point 128 need none.

Layouts from https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, and as `gguf.quants` decodes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from truecast.checkpoint.encoding import MIDDLE, Affine, Codebook, Encoding, Factor, Factors
from truecast.checkpoint.gguf.blocks import (
    FIVE_BITS_UP,
    SUB_BLOCKS,
    Blocks,
    at,
    eight_bits,
    five_bits,
    five_bits_k,
    high_nibbles,
    iq4_scales,
    low_nibbles,
    negated,
    nibbles,
    signed_scales,
    six_bit_minima,
    six_bit_scales,
    six_bits,
    ternary,
    three_bits,
    two_bits,
)
from truecast.checkpoint.gguf.grids import (
    IQ1_TABLE,
    IQ2_TABLE,
    IQ3_S_TABLE,
    IQ3_XXS_TABLE,
    iq1_m,
    iq1_m_odd,
    iq1_m_scale,
    iq1_s,
    iq1_s_odd,
    iq2_s,
    iq2_xs,
    iq2_xxs,
    iq3_s,
    iq3_xxs,
    odd_of_nibbles,
    odd_of_top,
)
from truecast.checkpoint.model import Array, Reader

Kind = GGMLQuantizationType
HALF, BYTE, SIGNED = np.dtype("<f2"), np.dtype(np.uint8), np.dtype(np.int8)
POWER = np.dtype(ml_dtypes.float8_e8m0fnu)
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the 4-bit codes of IQ4_NL and IQ4_XS stand for (kvalues_iq4nl)."""
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What the 4-bit codes of MXFP4 stand for (OCP Microscaling Formats 1.0); ggml has no negative zero."""

AT_ONCE = 1 << 18
"""Bytes of blocks that are shuffled at once: what is made on the way stays in a processor's cache."""


@dataclass(frozen=True)
class Part:
    """One factor of a block's scales: `values` gives [n, each] of `dtype` of n blocks."""

    dtype: np.dtype[Any]
    each: int
    values: Blocks


@dataclass(frozen=True)
class Layout:
    """How one block type becomes an encoding.

    bits, group: as in the encodings. codes: blocks → packed codes, uint8 [n, block · bits / 8]. zero, offsets: of
    `Affine`. table: what each code stands for; empty for `Affine`.
    """

    bits: int
    group: int
    codes: Blocks
    scales: tuple[Part, ...]
    zero: int = 0
    offsets: tuple[Part, ...] = ()
    table: tuple[float, ...] = ()


def encoding_of(kind: Kind, width: int, raw: Reader) -> Encoding | None:
    """The encoding of a matrix stored in blocks; None where the block type has none.

    Args:
        kind: the block type.
        width: of the matrix, in weights.
        raw: reads the matrix' rows as they are stored, uint8 [rows, bytes of a row].
    """
    layout = LAYOUTS.get(kind)
    if layout is None:
        return None
    block, block_bytes = (int(size) for size in GGML_QUANT_SIZES[kind])
    blocks = width // block

    def reader(each: int, dtype: np.dtype[Any], values: Blocks) -> Reader:
        def read(start: int, stop: int) -> Array:
            stored = raw(start, stop).reshape((stop - start) * blocks, block_bytes)
            made = np.empty((len(stored), each), dtype)
            step = max(1, AT_ONCE // block_bytes)
            for first in range(0, len(stored), step):
                made[first : first + step] = values(stored[first : first + step])
            return made.reshape(stop - start, blocks * each)

        return read

    def factors(parts: tuple[Part, ...]) -> Factors:
        return tuple(
            Factor(part.dtype, blocks * part.each, reader(part.each, part.dtype, part.values)) for part in parts
        )

    codes, scales = reader(block * layout.bits // 8, BYTE, layout.codes), factors(layout.scales)
    if layout.table:
        return Codebook(layout.bits, np.array(layout.table, np.float32), layout.group, codes, scales)
    return Affine(layout.bits, layout.group, codes, scales, layout.zero, factors(layout.offsets))


def _half(start: int) -> Part:
    """The float16 at byte `start` of a block."""
    return Part(HALF, 1, at(start, HALF))


def _minimum(start: int) -> Part:
    """The same where minima are multiplied with it; they are taken away, so its sign is turned."""
    return Part(HALF, 1, negated(at(start, HALF)))


_SCALES, _MINIMA = Part(BYTE, SUB_BLOCKS, six_bit_scales(4)), Part(BYTE, SUB_BLOCKS, six_bit_minima(4))
_SIXTEENTHS = 16
"""Parts of a super-block of 256 weights that have a scale each (Q2_K, Q3_K, Q6_K)."""

LAYOUTS: Mapping[Kind, Layout] = {
    Kind.Q4_0: Layout(4, 32, nibbles(2, 18, 16), (_half(0),), zero=8),
    Kind.Q4_1: Layout(4, 32, nibbles(4, 20, 16), (_half(0),), offsets=(_half(2),)),
    Kind.Q5_0: Layout(8, 32, five_bits(2, 6), (_half(0),), zero=MIDDLE),
    Kind.Q5_1: Layout(8, 32, five_bits(4, 8), (_half(0),), FIVE_BITS_UP, (_half(2),)),
    Kind.Q8_0: Layout(8, 32, eight_bits, (_half(0),), zero=MIDDLE),
    Kind.Q2_K: Layout(
        2,
        16,
        two_bits(16),
        (_half(80), Part(BYTE, _SIXTEENTHS, low_nibbles(0, 16))),
        offsets=(_minimum(82), Part(BYTE, _SIXTEENTHS, high_nibbles(0, 16))),
    ),
    Kind.Q3_K: Layout(4, 16, three_bits, (_half(108), Part(SIGNED, _SIXTEENTHS, signed_scales)), zero=8),
    Kind.Q4_K: Layout(4, 32, nibbles(16, 144, 32), (_half(0), _SCALES), offsets=(_minimum(2), _MINIMA)),
    Kind.Q5_K: Layout(8, 32, five_bits_k, (_half(0), _SCALES), FIVE_BITS_UP, (_minimum(2), _MINIMA)),
    Kind.Q6_K: Layout(8, 16, six_bits, (_half(208), Part(SIGNED, _SIXTEENTHS, at(192, SIGNED, 16))), zero=MIDDLE),
    Kind.IQ4_NL: Layout(4, 32, nibbles(2, 18, 16), (_half(0),), table=IQ4_VALUES),
    Kind.IQ4_XS: Layout(4, 32, nibbles(8, 136, 16), (_half(0), Part(SIGNED, SUB_BLOCKS, iq4_scales)), table=IQ4_VALUES),
    Kind.IQ1_S: Layout(4, 32, iq1_s, (_half(0), Part(BYTE, SUB_BLOCKS, iq1_s_odd)), table=IQ1_TABLE),
    Kind.IQ1_M: Layout(4, 16, iq1_m, (Part(HALF, 1, iq1_m_scale), Part(BYTE, _SIXTEENTHS, iq1_m_odd)), table=IQ1_TABLE),
    Kind.IQ2_XXS: Layout(
        4, 32, iq2_xxs, (_half(0), Part(BYTE, SUB_BLOCKS, odd_of_top(2, SUB_BLOCKS, 2))), table=IQ2_TABLE
    ),
    Kind.IQ2_XS: Layout(4, 16, iq2_xs, (_half(0), Part(BYTE, _SIXTEENTHS, odd_of_nibbles(66, 74))), table=IQ2_TABLE),
    Kind.IQ2_S: Layout(4, 16, iq2_s, (_half(0), Part(BYTE, _SIXTEENTHS, odd_of_nibbles(74, 82))), table=IQ2_TABLE),
    Kind.IQ3_XXS: Layout(
        4, 32, iq3_xxs, (_half(0), Part(BYTE, SUB_BLOCKS, odd_of_top(66, SUB_BLOCKS, 1))), table=IQ3_XXS_TABLE
    ),
    Kind.IQ3_S: Layout(4, 32, iq3_s, (_half(0), Part(BYTE, SUB_BLOCKS, odd_of_nibbles(106, 110))), table=IQ3_S_TABLE),
    Kind.MXFP4: Layout(4, 32, nibbles(1, 17, 16), (Part(POWER, 1, at(0, POWER)),), table=E2M1_VALUES),
    Kind.TQ1_0: Layout(2, 256, ternary, (_half(52),), zero=1),
    Kind.TQ2_0: Layout(2, 256, two_bits(0), (_half(64),), zero=1),
}
"""By block type; the numbers are bytes within a block."""
