"""The nouns of binding: which initializers come from which tensors, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from truecast.checkpoint.model import Array

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
class Binding:
    """One weight of the graph: made row by row from tensors of the checkpoint, never held as a whole.

    `packing` names the form for the manifest; `row_cost` is about how many source weights one row takes.
    """

    operands: tuple[Operand, ...]
    sources: tuple[str, ...]
    packing: str
    rows: int
    row_cost: int
    produce: Produce
