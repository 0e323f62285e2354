"""Random encodings over arrays in memory, and what they stand for by a formula written out once more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from truecast.checkpoint.encoding import Affine, Codebook, Encoding, Factor, Factors
from truecast.checkpoint.model import Reader

Array = NDArray[Any]
FLOAT8, BFLOAT16 = ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""bitsandbytes' table of normal floats (`create_normal_map`)."""
FP4_POSITIVE = (0.0, 0.0625 / 12, 8 / 12, 12 / 12, 4 / 12, 6 / 12, 2 / 12, 3 / 12)
FP4 = np.array((*FP4_POSITIVE, *(-value for value in FP4_POSITIVE)), np.float32)
"""bitsandbytes' 4-bit floats (`create_fp8_map` of 2 exponent bits, divided by its largest)."""
E2M1 = np.array((0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6), np.float32)
FLOAT8_VALUES = np.arange(256, dtype=np.uint8).view(FLOAT8).astype(np.float32)
WHOLE_ROW = -1
GROUPS = (16, 32, 40, 48, 64, 96, 128, 256, 512, WHOLE_ROW)
LARGEST_WIDTH = 1100


@dataclass(frozen=True)
class Drawn:
    """An encoding [rows, width]; `values` [rows, width] is what it stands for, made from `codes` before any packing.

    `terms` [rows, width] is the largest term a weight may be the sum of: its offset, or its scale times any code.
    """

    encoding: Encoding
    rows: int
    width: int
    codes: Array
    values: Array
    terms: Array

    @property
    def affine(self) -> Affine:
        assert isinstance(self.encoding, Affine)
        return self.encoding


def reader(array: Array) -> Reader:
    """Rows of an array."""
    return lambda start, stop: array[start:stop]


def factor(array: Array) -> Factor:
    """An array [rows, columns] as a factor of a scale."""
    return Factor(array.dtype, array.shape[1], reader(array))


def packed(codes: Array, bits: int) -> Array:
    """Bytes of codes [rows, width], the lowest bits first, through a string of bits."""
    each = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
    return np.packbits(each.reshape(len(codes), -1), axis=-1, bitorder="little")


Scales = Callable[[np.random.Generator, int, int], list[Array]]
"""Factors for a number of rows and groups."""


def _floats(dtype: Any, size: float = 0.02) -> Scales:
    def make(rng: np.random.Generator, rows: int, groups: int) -> list[Array]:
        return [(size * rng.standard_normal((rows, groups))).astype(dtype)]

    return make


def _coarsest(groups: int) -> int:
    """Columns of a factor that serves several groups: as many super-blocks as divide the groups."""
    return next(groups // size for size in (8, 4, 3, 2, 1) if groups % size == 0)


def _six_bits(rng: np.random.Generator, rows: int, groups: int) -> list[Array]:
    (coarse,) = _floats(np.float16)(rng, rows, _coarsest(groups))
    return [coarse, rng.integers(0, 64, (rows, groups), np.uint8)]


def _float8_and_row(rng: np.random.Generator, rows: int, groups: int) -> list[Array]:
    return [*_floats(FLOAT8, 1)(rng, rows, groups), *_floats(np.float32)(rng, rows, 1)]


def _three(rng: np.random.Generator, rows: int, groups: int) -> list[Array]:
    (row,), (coarse,), (fine,) = (
        _floats(dtype, 0.3)(rng, rows, count)
        for dtype, count in ((np.float32, 1), (BFLOAT16, _coarsest(groups)), (np.float16, groups))
    )
    return [row, fine, coarse]


SCALES: dict[str, Scales] = {
    "float16": _floats(np.float16),
    "bfloat16": _floats(BFLOAT16),
    "float32": _floats(np.float32),
    "signed bytes": lambda rng, rows, groups: [rng.integers(-32, 32, (rows, groups), np.int8)],
    "float16 · six bits": _six_bits,
    "float8 · float32 per row": _float8_and_row,
    "three, the coarsest in the middle": _three,
}


def multiplied(arrays: list[Array], groups: int) -> Array:
    """Factors multiplied one after the other in float32, [rows, groups], group by group."""
    result = np.ones((len(arrays[0]), groups), np.float32)
    for group in range(groups):
        for array in arrays:
            column = group * array.shape[1] // groups
            result[:, group] *= array[:, column].astype(np.float32)
    return result


def as_factors(arrays: list[Array]) -> Factors:
    """The same as factors."""
    return tuple(factor(array) for array in arrays)


def make_affine(
    seed: int,
    bits: int,
    group: int,
    shape: tuple[int, int],
    *,
    zero: int | str = "middle",
    scales: str = "float16",
    offsets: str = "",
    order: bool = False,
) -> Drawn:
    """An affine encoding of random numbers.

    `group` -1 is the whole row. `zero` is a number, `middle`, or `groups` for one of each group. `scales` and `offsets`
    name entries of `SCALES`.
    """
    rng, (rows, width) = np.random.default_rng(seed), shape
    group = width if group == WHOLE_ROW else group
    groups = -(-width // group)
    codes = rng.integers(0, 1 << bits, (rows, width), np.uint8)
    scale = SCALES[scales](rng, rows, groups)
    offset = SCALES[offsets](rng, rows, groups) if offsets else []
    zeros = rng.integers(0, 1 << bits, (rows, groups), np.uint8)
    middle = 1 << (bits - 1)
    if zero != "groups":
        zeros[:] = middle if zero == "middle" else zero
    encoding = Affine(
        bits=bits,
        group=group,
        codes=reader(packed(codes, bits)),
        scales=as_factors(scale),
        zero=reader(zeros) if zero == "groups" else int(zeros[0, 0]),
        offsets=as_factors(offset),
        order=rng.permutation(width) if order else None,
    )
    s = multiplied(scale, groups)
    o = multiplied(offset, groups) if offset else np.zeros_like(s)
    values, terms = np.empty((2, rows, width), np.float32)
    for column in range(width):
        at, place = column // group, column if encoding.order is None else encoding.order[column]
        difference = codes[:, column].astype(np.float32) - zeros[:, at].astype(np.float32)
        values[:, place] = difference * s[:, at] + o[:, at] if offset else difference * s[:, at]
        terms[:, place] = np.maximum(np.abs(o[:, at]), ((1 << bits) - 1) * np.abs(s[:, at]))
    return Drawn(encoding, rows, width, codes, values, terms)


def make_codebook(
    seed: int, table: Array, group: int, shape: tuple[int, int], scales: str = "float32", finite: bool = True
) -> Drawn:
    """A codebook encoding of random codes; `finite` leaves out codes of a table that are no numbers."""
    rng, (rows, width) = np.random.default_rng(seed), shape
    bits = len(table).bit_length() - 1
    group = width if group == WHOLE_ROW else group
    groups = -(-width // group)
    codes = rng.integers(0, 1 << bits, (rows, width), np.uint8)
    if finite:
        codes[~np.isfinite(table[codes])] = 0
    scale = SCALES[scales](rng, rows, groups)
    s = np.repeat(multiplied(scale, groups), group, axis=1)[:, :width]
    encoding = Codebook(bits, table, group, reader(packed(codes, bits)), as_factors(scale))
    values = table[codes] * s
    return Drawn(encoding, rows, width, codes, values, np.abs(values))


@st.composite
def affines(draw: st.DrawFn, orders: bool = True, whole: bool = False) -> Drawn:
    """Affine encodings of every kind; `whole`: rows are whole groups."""
    bits, group = draw(st.sampled_from((2, 4, 8))), draw(st.sampled_from(GROUPS))
    rows = draw(st.sampled_from((1, 2, 3, 5, 7, 16, 33)))
    if group == WHOLE_ROW:
        width = draw(st.sampled_from((16, 64, 96, 128, 256)) if whole else st.integers(1, 300))
    else:
        width = draw(st.integers(1, max(1, min(5, LARGEST_WIDTH // group)))) * group
        width += 0 if whole else draw(st.sampled_from((0, 0, 0, 1, 7, 16, 24)))
    return make_affine(
        draw(st.integers(0, 1 << 30)),
        bits,
        group,
        (rows, width),
        zero=draw(st.one_of(st.sampled_from(("middle", "groups")), st.integers(0, (1 << bits) - 1))),
        scales=draw(st.sampled_from(sorted(SCALES))),
        offsets=draw(st.sampled_from(("", "", "float16", "float16 · six bits", "float32"))),
        order=orders and draw(st.booleans()),
    )
