"""The nouns of reading weights back: what a node makes of an initializer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from truecast.dialects.experts import ExpertsForm
from truecast.proof.constants import RowsOf
from truecast.proof.operators import Array


@dataclass(frozen=True)
class Quantization:
    """How nodes read a quantized weight: `bits` per code, `block` codes per scale; `moved` by an offset per group.

    `ends` reads what the smallest and the largest code of each weight's block stand for; None where the middle code is
    zero, so that the scale says it all. `top` is the largest code where they go from -top to top, else None.
    `factors` [width] are what the channels of the input are multiplied with, and the weight's values hold.
    """

    bits: int
    block: int
    moved: bool = False
    ends: tuple[RowsOf, RowsOf] | None = None
    top: int | None = None
    factors: Array | None = None


@dataclass(frozen=True)
class Stack:
    """A weight of all experts of a layer, [experts, out, in] or [experts, out] as nodes read it.

    `turns` says that the rows of the gate and of what it gates take turns, the gate's first; else they are in the order
    of the author's parameter.
    """

    turns: bool

    def as_parameter(self, rows: Array, form: ExpertsForm) -> Array:
        """Experts as the author's parameter has them."""
        if self.turns and form.gate is not None and form.gate.halves:
            rows = np.concatenate((rows[:, 0::2], rows[:, 1::2]), 1)
        return rows.swapaxes(1, 2) if form.transposed and rows.ndim == 3 else rows

    def as_held(self, values: Array, form: ExpertsForm) -> Array:
        """The inverse of `as_parameter`."""
        values = values.swapaxes(1, 2) if form.transposed and values.ndim == 3 else values
        if not self.turns or form.gate is None or not form.gate.halves:
            return values
        halves = np.split(values, 2, axis=1)
        return np.stack(halves, 2).reshape(values.shape)


@dataclass(frozen=True)
class Table:
    """A weight as nodes read it: its shape, how its rows are computed, and the dtype of its values or scales."""

    shape: tuple[int, ...]
    read: RowsOf
    dtype: np.dtype[np.generic]
    quantization: Quantization | None = None
    stack: Stack | None = None


def plain_table(array: Array) -> Table:
    """An initializer that holds the values themselves."""
    return Table(array.shape, lambda start, stop: array[start:stop] if array.ndim else array.reshape(1), array.dtype)
