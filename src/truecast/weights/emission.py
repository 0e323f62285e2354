"""The nodes of one weight: what products and lookups of every dialect share, and what a dialect adds.

Data flow: a form, and its operands as graph values → (scales and offsets multiplied out, once per weight) → an
`Emitter` writes the product or the lookup in the operators of its dialect.

What depends on initializers alone is computed by ONNX Runtime when it loads the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import onnx_ir as ir

from truecast.dialects.expand import NodeWriter
from truecast.weights.binding import Operand
from truecast.weights.forms import Blocks, Bnb4, Floats, Form

Values = Mapping[str, ir.Value]
"""Initializers by name."""


class Emitter(Protocol):
    """Products and lookups in the operators of one dialect. `operands` are codes, scales and packed zero points.

    merges_gates: whether the two sides of a gate are faster as one product of blocks.
    """

    merges_gates: bool

    def placed(self, form: Form) -> Form:
        """The form with operands of the dtypes and shapes that the operators read; the bytes stay the same."""

    def product(self, write: NodeWriter, x: ir.Value, table: ir.Value, name: str) -> ir.Value:
        """x [batch, sequence, width] · tableᵀ for floats [rows, width]."""

    def block_product(
        self,
        write: NodeWriter,
        form: Blocks,
        x: ir.Value,
        operands: Sequence[ir.Value | None],
        bias: ir.Value | None,
        accuracy_level: int,
        name: str,
    ) -> ir.Value:
        """x [batch, sequence, width] · weightᵀ + bias for blocks of codes, without their offsets."""

    def bnb4_product(self, write: NodeWriter, form: Bnb4, x: ir.Value, values: Values, name: str) -> ir.Value:
        """x [batch, sequence, width] · weightᵀ for bitsandbytes' codes."""

    def block_lookup(
        self,
        write: NodeWriter,
        form: Blocks,
        ids: ir.Value,
        operands: Sequence[ir.Value | None],
        offsets: ir.Value | None,
        name: str,
    ) -> ir.Value:
        """Rows of a table of codes, [batch, sequence, width]; the codes are bytes [rows, …]."""

    def session_entries(self, accuracy_level: int) -> Mapping[str, str]:
        """Session keys without which ONNX Runtime takes other activations for the products of codes."""


def multiplied(
    write: NodeWriter, values: Values, factors: Sequence[Operand], columns: int, dtype: ir.DataType
) -> ir.Value:
    """The product of factors, [rows, columns] in `dtype`; a factor's value serves neighbouring columns alike."""
    result, width = as_dtype(write, values, factors[0], dtype), factors[0].shape[1]
    for factor in factors[1:]:
        other, wide = as_dtype(write, values, factor, dtype), factor.shape[1]
        finest = max(width, wide)
        result = write.op("Mul", [repeated(write, result, width, finest), repeated(write, other, wide, finest)])
        width = finest
    return repeated(write, result, width, columns)


def as_dtype(write: NodeWriter, values: Values, operand: Operand, dtype: ir.DataType) -> ir.Value:
    """An operand, cast where it is of another dtype."""
    value = values[operand.name]
    return value if operand.dtype == dtype else write.op("Cast", [value], {"to": dtype})


def repeated(write: NodeWriter, value: ir.Value, columns: int, wanted: int, times: int | None = None) -> ir.Value:
    """[rows, columns] → [rows, wanted], each column `times` times (None: as often as it takes), cut at the end."""
    times = times or -(-wanted // columns)
    if times > 1:
        tall = write.op("Unsqueeze", [value, write.ints(2)])
        wide = write.op("Expand", [tall, write.ints(1, 1, times)])
        value = write.op("Reshape", [wide, write.ints(0, columns * times)])
    if columns * times == wanted:
        return value
    return write.op("Slice", [value, write.ints(0), write.ints(wanted), write.ints(1)])


def cut(write: NodeWriter, rows: ir.Value, form: Blocks, name: str | None = None) -> ir.Value:
    """Rows without what fills their last block up."""
    return write.op("Slice", [rows, write.ints(0), write.ints(form.width), write.ints(-1)], name=name)


def scales_of(write: NodeWriter, values: Values, form: Blocks, dtype: ir.DataType) -> ir.Value:
    """One scale per block."""
    scales = multiplied(write, values, form.scales, form.groups, dtype)
    per_group = form.blocks if form.groups == 1 else form.group // form.block
    return repeated(write, scales, form.groups, form.blocks, per_group)


def offsets_of(write: NodeWriter, values: Values, form: Blocks, dtype: ir.DataType) -> ir.Value:
    """One offset per group, with the shift of the zero point."""
    offsets = multiplied(write, values, form.offsets, form.groups, dtype)
    if form.shift == 0:
        return offsets
    scales = multiplied(write, values, form.scales, form.groups, dtype)
    return write.op("Add", [write.op("Mul", [scales, write.scalar(form.shift, dtype)]), offsets])


def group_sums(write: NodeWriter, x: ir.Value, form: Blocks) -> ir.Value:
    """Sums of the inputs of each group, [batch, sequence, groups]."""
    split = write.op("Reshape", [x, write.ints(0, 0, form.groups, form.group)])
    return write.op("ReduceSum", [split, write.ints(-1)], {"keepdims": 0})


def float_table(write: NodeWriter, form: Floats, values: Values, dtype: ir.DataType) -> ir.Value:
    """The table as the graph computes with it."""
    table = as_dtype(write, values, form.table, dtype)
    if not form.scales:
        return table
    scales = multiplied(write, values, form.scales, form.groups, dtype)
    if form.groups > 1:
        scales = repeated(write, scales, form.groups, form.table.shape[1], form.group)
    return write.op("Mul", [table, scales])
