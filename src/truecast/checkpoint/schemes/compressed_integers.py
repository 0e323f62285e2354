"""Integers of compressed-tensors: codes of 1 to 8 bits in words, or bytes; with zero points and the order of columns.

Data flow: the words of a row → the layout that their number allows → codes in slots of 2, 4 or 8 bits. Codes and zero
points are stored with half their range added, so symmetric ones have their zero at 2^(bits-1).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from truecast.checkpoint.bits import packed_bytes
from truecast.checkpoint.encoding import Affine
from truecast.checkpoint.model import Array, Reader, StoredTensor
from truecast.checkpoint.schemes.grids import Block, Grid, column_order, grid, signed_zeros
from truecast.checkpoint.schemes.model import Module
from truecast.checkpoint.schemes.parts import byte_rows, in_runs
from truecast.checkpoint.schemes.words import (
    WORD_BITS,
    as_bytes,
    compacted,
    reordered,
    slot_of,
    turned,
    widened,
    words_of,
)

WIDEST = 8
"""Bits of the widest code that the library packs."""
NO_ORDER = -1
"""What g_idx holds where columns were never reordered."""


@dataclass(frozen=True)
class Layout:
    """How codes of `bits` lie in words: in a `dense` stream, or (the older way) as many as fit in each word whole."""

    bits: int
    dense: bool

    def words(self, count: int) -> int:
        """Words that `count` codes take."""
        return words_of(count, self.bits) if self.dense else -(-count // (WORD_BITS // self.bits))

    def slots(self, words: Array, slot: int) -> Array:
        """Codes in slots: int32 [rows, words] → uint8 [rows, bytes]."""
        if self.dense:
            return widened(as_bytes(words), self.bits, slot)
        return compacted(words.view(np.uint32), self.bits, slot)


def packed_integers(module: Module, library: str, widths: Collection[int], blocks: Collection[Block]) -> StoredTensor:
    """The weight in `weight_packed`, int32 [out, words], whose true shape is in `weight_shape`.

    `widths` and `blocks` are what config.json states of all modules; they decide where the tensors leave a choice.

    Raises:
        InputError: the parts contradict each other or config.json, or leave a choice.
    """
    shape = _stated_shape(module)
    layout = _layout(module, shape, widths)
    scales = grid(module, "weight_scale", shape, blocks)
    order = _order(module, shape[1], scales.group)
    zero = _zero(module, layout, shape, scales)
    codes = _codes(module["weight_packed"], layout, shape[1], order)
    encoding = Affine(slot_of(layout.bits), scales.group, codes, (scales.factor,), zero, order=order)
    words = [f"{library} {layout.bits}-bit", scales.words]
    words += ["asymmetric"] * (not isinstance(zero, int)) + ["act-order"] * (order is not None)
    return module.encoded(encoding, shape, ", ".join(words), "weight_packed")


def signed_bytes(module: Module, library: str, blocks: Collection[Block]) -> StoredTensor:
    """The weight in `weight`, int8 [out, in]; fewer bits than 8 are read the same.

    Raises:
        InputError: the parts contradict each other or config.json.
    """
    shape = module.matrix("weight")
    scales = grid(module, "weight_scale", shape, blocks)
    zero = _zero(module, Layout(WIDEST, dense=True), shape, scales)
    codes = byte_rows(module["weight"], flipped=1 << WIDEST - 1)
    encoding = Affine(WIDEST, scales.group, codes, (scales.factor,), zero)
    asymmetric = "" if isinstance(zero, int) else ", asymmetric"
    return module.encoded(encoding, shape, f"{library} 8-bit, {scales.words}{asymmetric}", "weight")


def _stated_shape(module: Module) -> tuple[int, int]:
    """The weight's [out, in]; the words alone leave open where a row's last word ends."""
    stored = module["weight_shape"].read().tolist()
    rows, _ = module.matrix("weight_packed")
    if len(stored) != 2 or stored[0] != rows or stored[1] < 1:
        raise module.fail(f"has {rows} rows of codes, but weight_shape says {stored}")
    return int(stored[0]), int(stored[1])


def _layout(module: Module, shape: tuple[int, int], widths: Collection[int]) -> Layout:
    """The one layout that fills the words of a row and is of a width that config.json states."""
    columns = module["weight_packed"].shape[1]
    fitting = [layout for layout in _layouts(shape[1], columns) if layout.bits in widths or not widths]
    if len(fitting) != 1:
        found = ", ".join(str(layout.bits) for layout in fitting) or "none"
        stated = ", ".join(map(str, sorted(widths))) or "none"
        raise module.fail(
            f"packs {shape[1]} codes into {columns} words, which fits codes of these bits: {found} "
            f"(config.json states {stated})",
            "correct num_bits in config.json, or download the checkpoint again",
        )
    return fitting[0]


def _layouts(count: int, words: int) -> Iterator[Layout]:
    for bits in range(1, WIDEST + 1):
        dense, sparse = Layout(bits, dense=True), Layout(bits, dense=False)
        if dense.words(count) == words:
            yield dense
        # Within the first word, and where no bits are wasted, both are the same.
        if WORD_BITS % bits and count > WORD_BITS // bits and sparse.words(count) == words:
            yield sparse


def _codes(packed: StoredTensor, layout: Layout, width: int, order: Array | None) -> Reader:
    slot = slot_of(layout.bits)
    length = packed_bytes(width, slot)

    def read(start: int, stop: int) -> Array:
        codes = layout.slots(packed.rows(start, stop), slot)[:, :length]
        return codes if order is None else reordered(lambda a, b: turned(codes[a:b]), stop - start, slot, order)

    return read


def _order(module: Module, width: int, group: int) -> Array | None:
    """Which column each code belongs to, the codes sorted by their group; None where they lie in order."""
    stored = module.get("weight_g_idx")
    if stored is None:
        return None
    index = stored.read()
    return None if (index == NO_ORDER).all() else column_order(module, "weight_g_idx", index, width, group)


def _zero(module: Module, layout: Layout, shape: tuple[int, int], scales: Grid) -> int | Reader:
    """Zero points: packed along the rows, or (older releases, and bytes) one signed byte each; none mean the middle."""
    stored, middle = module.get("weight_zero_point"), 1 << layout.bits - 1
    if stored is None:
        return middle
    columns = scales.factor.columns
    rows = -(-shape[0] // scales.height)
    if stored.dtype == np.int8 and stored.size == rows * columns:
        return signed_zeros(stored, scales.height, columns, middle)
    if stored.dtype == np.int32 and stored.shape == (layout.words(shape[0]), columns):
        return _packed_zeros(stored, layout)
    raise module.fail(f"has a weight_zero_point of shape {list(stored.shape)} for {rows}x{columns} scales")


def _packed_zeros(stored: StoredTensor, layout: Layout) -> Reader:
    """Zero points in words along the rows: int32 [words, groups] → rows → uint8 [rows, groups]."""
    words_of_run = layout.bits if layout.dense else 1

    def read(first: int, last: int) -> Array:
        return turned(layout.slots(turned(stored.rows(first * words_of_run, last * words_of_run)), WIDEST))

    return in_runs(WORD_BITS if layout.dense else WORD_BITS // layout.bits, read)
