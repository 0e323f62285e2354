"""Products and lookups of weights in operators that ONNX itself has from opset 21 on.

A product is MatMul(x, DequantizeLinear(codes)): ONNX Runtime makes one MatMulNBits of the two where codes and scales
are constants with the width on axis 0. The file keeps them as the checkpoint does, rows of [out, in], so they go
through a Transpose, which is done once when the graph is loaded. Transposed behind DequantizeLinear, they would be
decoded at every run.

A lookup gathers the bytes of a few rows and decodes those by the formula: behind a Gather, whose rows are as many as
there are tokens, OpenVINO (2026.4) refuses DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from truecast.dialects.expand import NodeWriter
from truecast.weights.binding import Binding, Operand
from truecast.weights.emission import Values, cut
from truecast.weights.forms import BNB_TABLES, Blocks, Bnb4, Form

ACTIVATIONS_KEY = "session.qdq_matmulnbits_accuracy_level"
"""Session key of ONNX Runtime (1.31) for the level of every MatMulNBits that it makes of DequantizeLinear and MatMul;
where it is not set, the level is 4: int8 activations."""
BYTE_BITS = 8
CODES = {4: ir.DataType.UINT4, 8: ir.DataType.UINT8}
"""Dtypes of codes by their bits, at opset 21."""
UINT8 = ir.DataType.UINT8


class StandardEmitter:
    """DequantizeLinear, MatMul and Gather; codes of 2 bits become 4 when the graph is loaded."""

    merges_gates = False

    def placed(self, form: Form) -> Form:
        """See `Emitter`."""
        if isinstance(form, Bnb4):
            return replace(form, binding=_reshaped(form.binding, form.width // 2, form.width // form.block))
        if not isinstance(form, Blocks):
            return form
        dtype = CODES.get(form.bits, UINT8)
        columns = form.blocks * form.block * form.bits // int(dtype.bitwidth)
        codes = replace(form.codes, dtype=dtype, shape=(form.rows, columns))
        operands = (codes, *form.binding.operands[1:])
        return replace(form, codes=codes, binding=replace(form.binding, operands=operands))

    def product(self, write: NodeWriter, x: ir.Value, table: ir.Value, name: str) -> ir.Value:
        """See `Emitter`."""
        return write.op("MatMul", [x, turned(write, table)], name=name)

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
        """See `Emitter`; the level is a matter of the session."""
        codes, scales, zeros = operands
        assert codes is not None and scales is not None
        dtype = CODES.get(form.bits, ir.DataType.UINT4)
        if form.bits not in CODES:
            codes = as_codes(write, unpacked(write, codes, form.bits, form.blocks * form.block), dtype)
        points = as_codes(write, zero_points(write, form, zeros, write.ints(form.rows, form.blocks)), dtype)
        inputs = [turned(write, value) for value in (codes, scales, points)]
        matrix = write.op("DequantizeLinear", inputs, {"axis": 0, "block_size": form.block})
        label = name if bias is None else f"{name}.product"
        result = write.op("MatMul", [filled(write, x, form), matrix], name=label)
        return result if bias is None else write.op("Add", [result, bias], name=name)

    def bnb4_product(self, write: NodeWriter, form: Bnb4, x: ir.Value, values: Values, name: str) -> ir.Value:
        """See `Emitter`: values of a table, looked up when the graph is loaded."""
        codes, scales = (values[operand.name] for operand in form.binding.operands)
        numbers = write.op("Cast", [unpacked(write, codes, 4, form.width, high_first=True)], {"to": ir.DataType.INT32})
        table = write.op("Constant", [], {"value": ir.tensor(BNB_TABLES[form.table])})
        looked_up = write.op("Gather", [table, numbers], {"axis": 0})
        grouped = write.op("Reshape", [looked_up, write.ints(0, form.width // form.block, form.block)])
        scaled = write.op("Mul", [grouped, write.op("Unsqueeze", [scales, write.ints(2)])])
        return self.product(write, x, write.op("Reshape", [scaled, write.ints(0, form.width)]), name)

    def block_lookup(
        self,
        write: NodeWriter,
        form: Blocks,
        ids: ir.Value,
        operands: Sequence[ir.Value | None],
        offsets: ir.Value | None,
        name: str,
    ) -> ir.Value:
        """See `Emitter`."""
        flat = write.op("Reshape", [ids, write.ints(-1)])
        codes, scales, zeros = (None if x is None else write.op("Gather", [x, flat], {"axis": 0}) for x in operands)
        assert codes is not None and scales is not None
        rows = decoded(write, form, unpacked(write, codes, form.bits, form.padded), scales, zeros)
        if form.padded != form.width:
            rows = cut(write, rows, form)
        if offsets is not None:
            chosen = write.op("Gather", [offsets, flat], {"axis": 0})
            grouped = write.op("Reshape", [rows, write.ints(0, form.groups, form.group)])
            rows = write.op("Add", [grouped, write.op("Unsqueeze", [chosen, write.ints(2)])])
        shape = write.op("Concat", [write.op("Shape", [ids]), write.ints(form.width)], {"axis": 0})
        return write.op("Reshape", [rows, shape], name=name)

    def session_entries(self, accuracy_level: int) -> Mapping[str, str]:
        """See `Emitter`."""
        return {ACTIVATIONS_KEY: str(accuracy_level)}


def turned(write: NodeWriter, value: ir.Value) -> ir.Value:
    """A matrix with its axes swapped."""
    return write.op("Transpose", [value], {"perm": [1, 0]})


def filled(write: NodeWriter, x: ir.Value, form: Blocks) -> ir.Value:
    """The input of a product with zeros at the end, where the codes fill their last block up."""
    missing = form.blocks * form.block - form.width
    return write.op("Pad", [x, write.ints(0, missing), None, write.ints(-1)]) if missing else x


def as_codes(write: NodeWriter, numbers: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Bytes as codes of `dtype`."""
    return numbers if dtype == UINT8 else write.op("Cast", [numbers], {"to": dtype})


def zero_points(write: NodeWriter, form: Blocks, packed: ir.Value | None, shape: ir.Value) -> ir.Value:
    """One byte per block, [rows, blocks]; `shape` says so."""
    if packed is not None:
        return unpacked(write, packed, form.bits, form.blocks)
    return write.op("Expand", [write.scalar(1 << (form.bits - 1), UINT8), shape])


def unpacked(write: NodeWriter, packed: ir.Value, bits: int, columns: int, *, high_first: bool = False) -> ir.Value:
    """Codes of `bits` from bytes [rows, …], one byte each: uint8 [rows, columns]; the lowest bits are the first."""
    if bits == BYTE_BITS:
        return packed
    places = list(range(0, BYTE_BITS, bits))
    ordered = reversed(places) if high_first else places
    parts = [write.op("Unsqueeze", [code_at(write, packed, place, bits), write.ints(2)]) for place in ordered]
    side_by_side = write.op("Concat", parts, {"axis": 2})
    bytes_per_row = -(-columns // len(places))
    flat = write.op("Reshape", [side_by_side, write.ints(0, bytes_per_row * len(places))])
    if columns % len(places) == 0:
        return flat
    return write.op("Slice", [flat, write.ints(0), write.ints(columns), write.ints(1)])


def code_at(write: NodeWriter, packed: ir.Value, place: int, bits: int) -> ir.Value:
    """The code of `bits` at a place of each byte; nothing else is left before the shift, which OpenVINO (2026.4) takes
    for a division that rounds."""
    mask = ((1 << bits) - 1) << place
    part = write.op("BitwiseAnd", [packed, write.scalar(mask, UINT8)])
    return write.op("BitShift", [part, write.scalar(place, UINT8)], {"direction": "RIGHT"}) if place else part


def decoded(write: NodeWriter, form: Blocks, codes: ir.Value, scales: ir.Value, zeros: ir.Value | None) -> ir.Value:
    """(code - zero) · scale of rows that were picked, one byte for each code: float32 [n, columns].

    `scales` are float32 [n, blocks], `zeros` as they are packed.
    """
    dtype = ir.DataType.FLOAT
    grouped = write.op("Reshape", [codes, write.ints(0, form.blocks, form.block)])
    numbers = write.op("Cast", [grouped], {"to": dtype})
    if zeros is None:
        centred = write.op("Add", [numbers, write.scalar(-(1 << (form.bits - 1)), dtype)])
    else:
        points = write.op("Cast", [unpacked(write, zeros, form.bits, form.blocks)], {"to": dtype})
        centred = write.op("Sub", [numbers, write.op("Unsqueeze", [points, write.ints(2)])])
    scaled = write.op("Mul", [centred, write.op("Unsqueeze", [scales, write.ints(2)])])
    return write.op("Reshape", [scaled, write.ints(0, form.padded)])


def _reshaped(binding: Binding, *columns: int) -> Binding:
    """The same bytes as matrices of that many columns."""
    operands: list[Operand] = [
        replace(operand, shape=(binding.rows, count)) for operand, count in zip(binding.operands, columns, strict=True)
    ]
    return replace(binding, operands=tuple(operands))
