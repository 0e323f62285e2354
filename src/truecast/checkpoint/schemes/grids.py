"""Scales on a grid: one number for each block of [height, width] weights, from one for all to one for each few columns.

Data flow: a scale tensor and the weight's shape → `grid` finds the blocks' height and width → a `Factor` that reads a
row of scales for any row of the weight. Where scales are stored as [groups, rows] (`turned_factor`), blocks are groups
of one row, whose length the configuration states, and columns may be sorted by their group.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from truecast.checkpoint.encoding import Factor, groups_of
from truecast.checkpoint.model import Array, Reader, StoredTensor
from truecast.checkpoint.schemes.model import Module
from truecast.checkpoint.schemes.words import turned

Block = tuple[int, int]
"""Height and width, in weights, of what shares a scale."""

E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E5M2 = np.dtype(ml_dtypes.float8_e5m2)
SCALE_TYPES = frozenset(np.dtype(kind) for kind in (np.uint8, np.float16, np.float32, ml_dtypes.bfloat16, E4M3, E8M0))
"""What a scale may be stored in, bytes as exponents; all convert to float32 without rounding."""
BYTE = np.dtype(np.uint8)
EXPONENT_TYPES = frozenset({BYTE, E8M0})
"""Types of scales that are a power of two, stored as its exponent."""

EXPONENTS: Array = np.arange(256, dtype=np.uint8).view(E8M0).astype(np.float32)
"""float32 [256]: 2^(e - 127) for a scale that is stored as its biased exponent alone (OCP MX 1.0, E8M0); 255 is NaN."""


@dataclass(frozen=True)
class Grid:
    """The scales of a weight: blocks of `height` rows and `group` columns share one; `words` says so to the user."""

    factor: Factor
    height: int
    group: int
    words: str


def grid(module: Module, part: str, shape: tuple[int, int], stated: Collection[Block] = ()) -> Grid:
    """The scales in `part` for a weight of `shape`.

    One scale, one for each row, and one for each block are told apart by the number of scales. `stated` are the
    block shapes that the checkpoint or its format names; without any, equal groups of columns are assumed.

    Raises:
        InputError: the scales are no floats, or their number fits no block.
    """
    scale = module[part]
    if scale.dtype not in SCALE_TYPES:
        raise module.fail(f"stores its {part} as {scale.stored_as}, which is no type of scales")
    height, width = block_of(module, part, shape, stated)
    return Grid(row_factor(scale, height, -(-shape[1] // width)), height, width, _words(shape, height, width))


def row_factor(scale: StoredTensor, height: int, columns: int) -> Factor:
    """A factor that reads `scale` [rows / height, columns], each of its rows for `height` rows of the weight."""
    stored = grid_rows(scale, height, columns)
    if scale.dtype != BYTE:
        return Factor(scale.dtype, columns, stored)

    def read(start: int, stop: int) -> Array:
        return np.take(EXPONENTS, stored(start, stop))

    return Factor(EXPONENTS.dtype, columns, read)


def grid_rows(stored: StoredTensor, height: int, columns: int) -> Reader:
    """Reads a tensor of [rows / height, columns] as it is, each of its rows for `height` rows of the weight."""

    def read(start: int, stop: int) -> Array:
        first, last = start // height, -(-stop // height)
        values = stored.rows(first, last).reshape(last - first, columns)
        return values if height == 1 else values[np.arange(start, stop) // height - first]

    return read


def turned_factor(stored: StoredTensor, groups: int) -> Factor:
    """A factor that is stored the other way round, as [at least `groups`, rows]."""

    def read(start: int, stop: int) -> Array:
        return turned(stored.rows(0, groups)[:, start:stop])

    return Factor(stored.dtype, groups, read)


def stated_group(stated: Mapping[str, Any], width: int) -> int:
    """The configuration's group size, under either of its names; -1, nothing and nonsense mean the whole row."""
    group = stated.get("group_size", stated.get("q_group_size"))
    return group if isinstance(group, int) and 0 < group <= width else width


def group_of(module: Module, width: int, groups: int, stated: Mapping[str, Any]) -> int:
    """The length of a group: as stated where that gives so many groups, else the even division.

    Raises:
        InputError: neither gives so many groups.
    """
    group = stated_group(stated, width)
    if groups_of(width, group) == groups:
        return group
    if width % groups:
        raise module.fail(
            f"has {groups} groups for {width} columns, which no group size gives (the configuration says {group})"
        )
    return width // groups


def column_order(module: Module, part: str, index: Array, width: int, group: int) -> Array | None:
    """Which column each code belongs to, the codes sorted by their group; None where they lie in order.

    `index` is the content of `part`, the group of each column.

    Raises:
        InputError: the groups are not of `group` columns each.
    """
    order = np.argsort(index, kind="stable")
    if index.shape != (width,) or not np.array_equal(index[order], np.arange(width) // group):
        raise module.fail(
            f"has a {part} that does not divide {width} columns into {groups_of(width, group)} groups of {group}"
        )
    return None if np.array_equal(order, np.arange(width)) else order


def block_of(module: Module, part: str, shape: tuple[int, int], stated: Collection[Block] = ()) -> Block:
    """Height and width of the blocks of a weight that share a value of `part`, told apart as by `grid`."""
    rows, width = shape
    down, across = _counts(module, part, rows)
    if (down, across) == (1, 1):
        return rows, width
    if (down, across) == (rows, 1):
        return 1, width
    fitting = {
        (min(high, rows), min(wide, width))
        for high, wide in stated
        if (-(-rows // high), -(-width // wide)) == (down, across)
    }
    if not stated and down == rows and across and width % across == 0:
        fitting = {(1, width // across)}
    if len(fitting) != 1:
        named = " or ".join(f"{high}x{wide}" for high, wide in stated) or "none are stated"
        raise module.fail(
            f"has {down}x{across} scales in {part} for a weight of {rows}x{width}, which fits no single block shape "
            f"({named})",
            "correct the block or group size that is stated, or download the checkpoint again",
        )
    return fitting.pop()


def signed_zeros(stored: StoredTensor, height: int, columns: int, middle: int) -> Reader:
    """Zero points of signed codes, one each on a grid, for codes that have `middle` added."""
    signed = grid_rows(stored, height, columns)

    def read(start: int, stop: int) -> Array:
        return (signed(start, stop) + np.int16(middle)).astype(np.uint8)

    return read


def _counts(module: Module, part: str, rows: int) -> tuple[int, int]:
    """How many scales there are down and across; a vector has one for each row."""
    scale = module[part]
    if scale.size == 1:
        return 1, 1
    if scale.shape == (rows,):
        return rows, 1
    if len(scale.shape) != 2:
        raise module.fail(f"has a {part} of shape {list(scale.shape)} for a weight with {rows} rows")
    return scale.shape[0], scale.shape[1]


def _words(shape: tuple[int, int], height: int, width: int) -> str:
    if (height, width) == shape and height != 1:
        return "per tensor"
    if height > 1:
        return f"{height}x{width} blocks"
    return "per channel" if width == shape[1] else f"group {width}"
