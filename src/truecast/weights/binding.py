"""The nouns of binding: which initializers come from which tensors, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from truecast.checkpoint.model import Array, StoredTensor

Produce = Callable[[int, int], Sequence[Array]]
"""Rows [start, stop) of every operand of one binding, in the order of its operands."""


@dataclass(frozen=True)
class Operand:
    """One initializer: name, dtype and shape; the first dimension counts the rows that bindings are made by."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        size = 1
        for dim in self.shape:
            size *= dim
        return int(size * self.dtype.itemsize)


@dataclass(frozen=True)
class Alias:
    """A second initializer over the bytes of an operand, of its own dtype and shape: two operators share one table."""

    name: str
    operand: str
    dtype: ir.DataType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Binding:
    """One weight of the graph: made row by row from tensors of the checkpoint, never held as a whole.

    `packing` names the form for the manifest; `row_cost` is about how many source weights one row takes. `verbatim` is
    the stored tensor whose very bytes are the only operand, if there is one. `own` says that the codes and scales are
    the checkpoint's own.
    """

    operands: tuple[Operand, ...]
    sources: tuple[str, ...]
    packing: str
    rows: int
    row_cost: int
    produce: Produce
    verbatim: StoredTensor | None = None
    own: bool = False


def array_binding(name: str, array: Array, origin: str) -> Binding:
    """An array that was computed rather than stored; `origin` says how, for the manifest."""
    operand = Operand(name, ir.DataType.from_numpy(array.dtype), array.shape)

    def produce(start: int, stop: int) -> Sequence[Array]:
        return [array[start:stop]]

    return Binding((operand,), (), origin, array.shape[0], array.size // max(1, array.shape[0]), produce)


def stacked(bindings: Sequence[Binding], names: Sequence[str]) -> Binding:
    """Several weights as one, their rows one below the other; `names` are the names of the new operands.

    The operands must agree in everything but the number of rows.
    """
    ends = list(np.cumsum([binding.rows for binding in bindings]))
    rows = int(ends[-1])

    def produce(start: int, stop: int) -> Sequence[Array]:
        pieces = []
        for binding, end in zip(bindings, ends, strict=True):
            first = end - binding.rows
            low, high = max(start, first), min(stop, end)
            if low < high:
                pieces.append(binding.produce(int(low - first), int(high - first)))
        return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]

    first = bindings[0]
    operands = tuple(
        Operand(name, operand.dtype, (rows, *operand.shape[1:]))
        for name, operand in zip(names, first.operands, strict=True)
    )
    sources = tuple(source for binding in bindings for source in binding.sources)
    packing = " + ".join(dict.fromkeys(binding.packing for binding in bindings))
    own = all(binding.own for binding in bindings)
    return Binding(operands, sources, packing, rows, first.row_cost, produce, own=own)
