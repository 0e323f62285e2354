"""Readers over the stored parts of a module: their bytes, rows that are stored in runs, and zero points.

Data flow: a part of a module (`StoredTensor`) → a reader of rows of the *weight* that maps only the bytes they need.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from truecast.checkpoint.mapping import map_array
from truecast.checkpoint.model import Array, Reader, StoredTensor
from truecast.checkpoint.schemes.words import as_bytes, turned


def raw_bytes(part: StoredTensor, begin: int, end: int) -> Array:
    """Bytes [begin, end) of a stored part as uint8, whatever its dtype."""
    return map_array(part.location.path, part.location.offset + begin, np.dtype(np.uint8), (end - begin,))


def byte_rows(part: StoredTensor, flipped: int = 0) -> Reader:
    """Rows of a matrix as their bytes, uint8 [rows, bytes], copied only where bits of each byte are `flipped`."""

    def read(start: int, stop: int) -> Array:
        stored = as_bytes(part.rows(start, stop))
        return stored ^ np.uint8(flipped) if flipped else stored

    return read


def byte_columns(part: StoredTensor, flipped: int = 0) -> Reader:
    """Columns of a matrix of bytes as rows, uint8 [columns, rows], with bits of each byte `flipped`."""

    def read(start: int, stop: int) -> Array:
        columns = turned(part.rows()[:, start:stop].view(np.uint8))
        return np.bitwise_xor(columns, np.uint8(flipped), out=columns)

    return read


def in_runs(length: int, read: Callable[[int, int], Array]) -> Reader:
    """Any rows, from a reader of whole runs of `length` rows: `read` takes and gives the runs from first to last."""

    def rows(start: int, stop: int) -> Array:
        first = start // length
        return read(first, -(-stop // length))[start - first * length : stop - first * length]

    return rows


def common_value(packed: StoredTensor, first: Array) -> int | None:
    """The one zero point of all groups and rows, or None; `first` is those of the first group, `packed` all of them.

    Few bytes: one code for each group of weights.
    """
    if np.any(first != first[0]) or np.any(packed.rows() != packed.rows(0, 1)):
        return None
    return int(first[0])
