"""How the values of one weight are stored: two encodings, beside plain floats, are enough for every known format.

Data flow: a scheme (one library's tensors) → `Affine` or `Codebook`, whose readers give any run of rows of the stored
codes and scales → `decode` gives the float32 values, or a packing takes the codes as they are.

A weight is [rows, width]; codes and scales run along the width. Codes are packed bytes, the lowest bits first (`bits`).
A scale is a product of factors, each kept as the format stores it: formats with scales of scales stay as small as they
are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from truecast.checkpoint.bits import unpack
from truecast.checkpoint.model import Array, Reader


@dataclass(frozen=True)
class Factor:
    """One factor of a scale: `read` gives [rows, columns] of `dtype`.

    A row has `columns` values, and each serves as many neighbouring groups: one value per group, one per row, or
    anything between that divides the number of groups.
    """

    dtype: np.dtype[Any]
    columns: int
    read: Reader


Factors = tuple[Factor, ...]


@dataclass(frozen=True)
class Affine:
    """w[n, k] = (code[n, k] - zero[n, g]) · scale[n, g] + offset[n, g], with g = k // group.

    bits: width of a code's slot, 2, 4 or 8; the codes themselves may be narrower.
    group: weights along a row that share a scale; the last group of a row may be shorter.
    codes: rows → uint8 [rows, ceil(width · bits / 8)], the lowest bits first.
    scales, offsets: products of factors, multiplied in order in float32; no offsets mean 0.
    zero: the zero point, one number for all groups or rows → uint8 [rows, groups].
    order: column j of the codes is column order[j] of the weight; None where they are the same.
    """

    bits: int
    group: int
    codes: Reader
    scales: Factors
    zero: int | Reader
    offsets: Factors = ()
    order: Array | None = None

    @property
    def middle(self) -> int:
        """The zero point of signed codes, 2^(bits-1): what operators assume where none is given."""
        return 1 << (self.bits - 1)


@dataclass(frozen=True)
class Codebook:
    """w[n, k] = table[code[n, k]] · scale[n, g], with g = k // group.

    bits: of a code, 4 or 8. table: float32 [2^bits]. codes, group, scales: as in `Affine`.
    """

    bits: int
    table: Array
    group: int
    codes: Reader
    scales: Factors


Encoding = Affine | Codebook


def groups_of(width: int, group: int) -> int:
    """Number of groups in a row."""
    return -(-width // group)


def product(factors: Sequence[Factor], groups: int, start: int, stop: int) -> Array:
    """The product of factors for rows [start, stop), float32 [rows, groups]."""
    result = np.ones((stop - start, groups), np.float32)
    for factor in factors:
        values = np.asarray(factor.read(start, stop)).astype(np.float32).reshape(stop - start, factor.columns)
        result *= np.repeat(values, groups // factor.columns, axis=1)
    return result


def decode(encoding: Encoding, width: int, start: int, stop: int) -> Array:
    """Rows [start, stop) as float32 [rows, width]: each operation of the formula in float32, one after the other."""
    groups = groups_of(width, encoding.group)
    codes = unpack(encoding.codes(start, stop), encoding.bits, width)
    values = _grouped(encoding.table[codes] if isinstance(encoding, Codebook) else codes, encoding.group, groups)
    if isinstance(encoding, Affine):
        zero = encoding.zero
        values -= np.float32(zero) if isinstance(zero, int) else zero(start, stop)[..., None].astype(np.float32)
    values *= product(encoding.scales, groups, start, stop)[..., None]
    if isinstance(encoding, Affine) and encoding.offsets:
        values += product(encoding.offsets, groups, start, stop)[..., None]
    flat: Array = values.reshape(stop - start, groups * encoding.group)[:, :width]
    if isinstance(encoding, Codebook) or encoding.order is None:
        return flat
    result = np.empty_like(flat)
    result[:, encoding.order] = flat
    return result


def _grouped(values: Array, group: int, groups: int) -> Array:
    """float32 [rows, groups, group], the last group filled up with zeros."""
    rows, width = values.shape
    filled = np.zeros((rows, groups * group), np.float32)
    filled[:, :width] = values
    return filled.reshape(rows, groups, group)


def integer_image(codebook: Codebook) -> Affine | None:
    """The same weights with 8-bit integer codes, where the table is small integers times a power of two; else None.

    Exact: scales are multiplied by a power of two.
    """
    for doublings in range(MOST_DOUBLINGS + 1):
        whole = codebook.table.astype(np.float64) * 2.0**doublings
        if np.array_equal(whole, np.round(whole)):
            break
    else:
        return None
    if np.abs(whole).max() > LARGEST_CODE:
        return None
    table = (whole + MIDDLE).astype(np.uint8)
    columns = codebook.scales[0].columns
    power = np.float32(2.0**-doublings)

    def codes(start: int, stop: int) -> Array:
        packed = codebook.codes(start, stop)
        return np.take(table, unpack(packed, codebook.bits, packed.shape[1] * 8 // codebook.bits))

    def scale(start: int, stop: int) -> Array:
        return np.asarray(codebook.scales[0].read(start, stop)).astype(np.float32) * power

    first = codebook.scales[0] if doublings == 0 else Factor(np.dtype(np.float32), columns, scale)
    return Affine(8, codebook.group, codes, (first, *codebook.scales[1:]), MIDDLE)


MIDDLE, LARGEST_CODE = 128, 127
"""Zero point of signed 8-bit codes, and the largest distance from it."""
MOST_DOUBLINGS = 3
"""Tables hold halves (FP4) or whole numbers (IQ4_NL); eighths would still fit their 8 bits."""
