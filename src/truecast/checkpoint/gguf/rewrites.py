"""What llama.cpp's converter does to the values of some tensors, and how a reader undoes it.

Data flow: reader of the file's rows → `undo` → reader of the rows as the transformers model has them.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from truecast.checkpoint.model import Array, Reader


class Rewrite(StrEnum):
    """What the converter did to the values of a tensor."""

    NONE = "none"
    PLUS_ONE = "plus one"
    """1 was added to every value."""
    HEAD_ROWS = "head rows"
    """Within each head, rows of the two rotary halves were interleaved: row 2p + s holds row s·dim/2 + p."""
    TRANSPOSED = "transposed"
    SQUEEZED = "squeezed"
    """The one row of a matrix was written as a vector."""
    FUSED_HEADS = "fused heads"
    """The rows of each key/value head, [its query heads, k, v], were regrouped as [all q, all k, all v]."""


def row_unit(rewrite: Rewrite, heads: int, kv_heads: int) -> int:
    """The number that the rows of a tensor must be a multiple of."""
    return {Rewrite.HEAD_ROWS: 2 * heads, Rewrite.FUSED_HEADS: heads + 2 * kv_heads}.get(rewrite, 1)


def keeps_blocks(rewrite: Rewrite) -> bool:
    """Whether undoing moves whole rows only, so that quantized rows stay as they are stored."""
    return rewrite in {Rewrite.NONE, Rewrite.HEAD_ROWS, Rewrite.FUSED_HEADS}


def undo(rewrite: Rewrite, reader: Reader, rows: int, heads: int, kv_heads: int) -> Reader:
    """A reader of the values (or, for rewrites of rows, of raw blocks) before the `rewrite`.

    Args:
        rewrite: what was done.
        reader: reads the tensor as the file has it.
        rows: its first dimension in the file, a multiple of `row_unit`.
        heads: the heads its rows belong to; of a fused tensor, the query heads.
        kv_heads: of a fused tensor, the key heads, a divisor of `heads`.
    """
    if rewrite is Rewrite.PLUS_ONE:
        return _minus_one(reader)
    if rewrite is Rewrite.TRANSPOSED:
        return _transposed(reader, rows)
    if rewrite is Rewrite.HEAD_ROWS:
        return _reordered(reader, np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).ravel())
    if rewrite is Rewrite.FUSED_HEADS:
        return _reordered(reader, _fused_order(rows, heads, kv_heads))
    return reader


def _fused_order(rows: int, heads: int, kv_heads: int) -> Array:
    """For each row of [kv head, (its queries, k, v)] the row of [all q, all k, all v]."""
    dim = rows // (heads + 2 * kv_heads)
    bounds = [heads * dim, (heads + kv_heads) * dim]
    per_head = [part.reshape(kv_heads, -1) for part in np.split(np.arange(rows), bounds)]
    return np.concatenate(per_head, axis=1).ravel()


def _minus_one(reader: Reader) -> Reader:
    def read(start: int, stop: int) -> Array:
        return np.asarray(reader(start, stop).astype(np.float32) - np.float32(1))

    return read


def _transposed(reader: Reader, rows: int) -> Reader:
    def read(start: int, stop: int) -> Array:
        return np.ascontiguousarray(reader(0, rows).T[start:stop])

    return read


def _reordered(reader: Reader, order: Array) -> Reader:
    """Row i of the result is row `order[i]` of the file."""

    def read(start: int, stop: int) -> Array:
        wanted = order[start:stop]
        if not len(wanted):
            return reader(0, 0)
        first = int(wanted.min())
        return np.asarray(reader(first, int(wanted.max()) + 1)[wanted - first])

    return read
