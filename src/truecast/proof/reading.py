"""What the nodes of a graph make of the initializers they multiply with, or look rows up in.

Data flow: every product and lookup → its codes or table, with scales, zero points, offsets and order as the graph has
them → a `Table` per initializer: how to read rows of the weight. It follows what the graph computes, not what the
exporter meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from truecast.proof.constants import NotByRowsError, RowsOf, base_of, rows_of, stored_array, untransposed
from truecast.proof.experts import OPERATORS, experts_tables, feeds_experts, product_table
from truecast.proof.integers import IntegerProduct, factors_of, integer_product, integer_rows
from truecast.proof.operators import BNB_TABLES, BYTE_BITS, Array, bnb4_values, dequantize
from truecast.proof.pairs import (
    codes_of,
    decoded,
    decoder_inputs,
    filled_up,
    has_zero_points,
    scale_dtype,
)
from truecast.proof.picked import has_points, picked_codes, picked_ends, read_picked
from truecast.proof.table import Quantization, Table, plain_table
from truecast.runtime.integers import FULL, REDUCED


def read_tables(model: ir.Model, islands: bool = False) -> dict[str, list[Table]]:
    """Every initializer that nodes read as anything else than its plain values, by name: once for each such node.

    `islands` says that the graph is of 16 bits: a weight that float32 islands widen is then one of 16 bits, too.
    """
    tables: dict[str, list[Table]] = {}
    for node in model.graph:
        try:
            for name, table in _tables_of(node, islands):
                tables.setdefault(name, []).append(table)
        except NotByRowsError:  # computed from inputs: an activation, no weight
            continue
    return tables


def _tables_of(node: ir.Node, islands: bool) -> Iterator[tuple[str, Table]]:
    if node.op_type == "MatMulNBits":
        yield _name(node.inputs[1]), _product(node)
    elif node.op_type == "GatherBlockQuantized":
        yield _name(node.inputs[0]), _lookup(node)
    elif node.op_type == "MatMulBnb4":
        yield _name(node.inputs[1]), _bnb4(node)
    elif _is_integer(node):
        product = integer_product(node)
        yield _name(product.codes), _integers(product)
    elif node.op_type == "DequantizeLinear" and not feeds_experts(node):
        yield _name(decoder_inputs(node)[0]), _pair(node)
    elif (codes := picked_codes(node)) is not None:
        yield _name(codes), _picked(node, codes)
    elif node.op_type in OPERATORS:
        for weight, table in experts_tables(node):
            yield _name(weight), table
    elif node.op_type == "MatMul" and (found := product_table(node)) is not None:
        yield _name(found[0]), found[1]
    elif node.op_type in ("MatMul", "FusedMatMul", "Gather"):
        value = node.inputs[0] if node.op_type == "Gather" else untransposed(node.inputs[1])
        base = base_of(value)
        if value is not None and base is not None and base is not value:
            yield _name(base), _widened(base) if islands and _only_widened(value, base) else _computed(value, base)


def _name(value: ir.Value | None) -> str:
    base = base_of(value)
    if base is None:
        raise NotByRowsError("no initializer")
    return base.name or ""


def _computed(value: ir.Value, base: ir.Value) -> Table:
    assert base.const_value is not None
    read = rows_of(value)
    first = read(0, 1)
    return Table((int(base.const_value.shape.numpy()[0]), *first.shape[1:]), read, first.dtype)


def _widened(base: ir.Value) -> Table:
    """The values as they are stored: what they were rounded to is what they are held to."""
    assert base.const_value is not None
    return plain_table(stored_array(base.const_value))


def _only_widened(value: ir.Value, base: ir.Value) -> bool:
    """Whether float32 is made of a weight of 16 bits: the cast leaves its values as they are."""
    node = value.producer()
    if node is None or node.op_type != "Cast" or node.inputs[0] is not base:
        return False
    small = base.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return small and node.attributes["to"].as_int() == ir.DataType.FLOAT


def _is_integer(node: ir.Node) -> bool:
    """Whether a node takes a weight without blocks."""
    return node.op_type == "MatMulInteger" or (
        node.op_type == "DequantizeLinear" and "block_size" not in node.attributes
    )


def _integers(product: IntegerProduct) -> Table:
    """A weight of a product of integers: one scale per row, and codes as far from zero on either side."""
    read, (rows, width), largest, dtype = integer_rows(product)
    top = REDUCED if largest <= REDUCED else FULL
    quantization = Quantization(top.bit_length() + 1, width, top=top, factors=factors_of(product, width))
    return Table((rows, width), read, dtype, quantization)


def _optional(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _required(node: ir.Node, index: int) -> RowsOf:
    value = _optional(node, index)
    if value is None:
        raise NotByRowsError(node.op_type)
    return rows_of(value)


def factor_rows(node: ir.Node) -> RowsOf:
    """Rows [N, K] of what MatMulNBits itself multiplies with: offsets and orders of columns are nodes of their own.

    Raises NotByRowsError where its inputs are no constants that can be read by rows.
    """
    bits, block, width = (node.attributes[name].as_int() for name in ("bits", "block_size", "K"))
    return _decoded(node, _required(node, 1), (2, 3), bits, block, width)


def factor_scales(node: ir.Node) -> RowsOf:
    """Rows of the scales of MatMulNBits, whose dtype the product's input and result have as well."""
    return _required(node, 2)


def _product(node: ir.Node) -> Table:
    bits, block, width, rows = (node.attributes[name].as_int() for name in ("bits", "block_size", "K", "N"))
    offsets, order = product_offsets(node), _order(node)

    def whole(codes: RowsOf) -> RowsOf:
        read = _decoded(node, codes, (2, 3), bits, block, width)
        read = _moved(read, offsets, width) if offsets is not None else read
        return _ordered(read, order) if order is not None else read

    codes, scales = _required(node, 1), _required(node, 2)(0, 1)
    ends = _ends(codes, whole) if offsets is not None or _optional(node, 3) is not None else None
    return Table((rows, width), whole(codes), scales.dtype, Quantization(bits, block, offsets is not None, ends))


def _pair(node: ir.Node) -> Table:
    """A weight that DequantizeLinear decodes for its only reader."""
    codes, bits = codes_of(node)
    reader = next(use.node for use in node.outputs[0].uses())
    offsets, order = product_offsets(reader), _order(reader)
    base, block = base_of(decoder_inputs(node)[0]), node.attributes["block_size"].as_int()
    assert base is not None and base.const_value is not None
    rows = int(base.const_value.shape.numpy()[0])
    width = codes(0, 1).shape[1] - filled_up(reader.inputs[0])[1]

    def whole(codes: RowsOf) -> RowsOf:
        read = _cut(decoded(node, codes), width)
        read = _moved(read, offsets, width) if offsets is not None else read
        return _ordered(read, order) if order is not None else read

    uneven = offsets is not None or has_zero_points(node)
    ends = _ends(_as_bytes(codes), whole, (1 << bits) - 1) if uneven else None
    return Table((rows, width), whole(codes), scale_dtype(node), Quantization(bits, block, offsets is not None, ends))


def _picked(node: ir.Node, codes: ir.Value) -> Table:
    """A table whose picked rows a graph decodes by the formula; `node` is the product with the scales."""
    base, flat = base_of(codes), next(use.node for use in node.outputs[0].uses())
    assert base is not None and base.const_value is not None
    rows, (_, blocks, block) = int(base.const_value.shape.numpy()[0]), read_picked(node)(0, 1).shape
    width, offsets = _kept(flat) or blocks * block, _lookup_offsets(flat)
    bits = base.const_value.nbytes * BYTE_BITS // (rows * blocks * block)

    def whole(read: RowsOf) -> RowsOf:
        read = _cut(_joined(read), width)
        return _moved(read, offsets, width) if offsets is not None else read

    lowest, highest = map(whole, picked_ends(node, (1 << bits) - 1))
    uneven = offsets is not None or has_points(node)
    read = read_picked(node)
    quantization = Quantization(bits, block, offsets is not None, (lowest, highest) if uneven else None)
    return Table((rows, width), whole(read), read(0, 1).dtype, quantization)


def _joined(read: RowsOf) -> RowsOf:
    """Rows of blocks as rows."""
    return lambda start, stop: read(start, stop).reshape(stop - start, -1)


def _cut(read: RowsOf, width: int) -> RowsOf:
    return lambda start, stop: read(start, stop)[:, :width]


def _as_bytes(codes: RowsOf) -> RowsOf:
    return lambda start, stop: codes(start, stop).astype(np.uint8)


def _ends(codes: RowsOf, whole: Callable[[RowsOf], RowsOf], full: int = 255) -> tuple[RowsOf, RowsOf]:
    """The weights if every code were the smallest, and if every one were the largest: all bits 0, or 1."""
    return whole(lambda start, stop: codes(start, stop) & 0), whole(lambda start, stop: codes(start, stop) | full)


def _lookup(node: ir.Node) -> Table:
    bits, block = (node.attributes[name].as_int() for name in ("bits", "block_size"))
    table, scales = node.inputs[0], _required(node, 2)
    assert table is not None and table.const_value is not None
    rows, filled = table.const_value.shape.numpy()[0], scales(0, 1).shape[1] * block
    width = _kept(node) or filled
    offsets = _lookup_offsets(node)

    def whole(codes: RowsOf) -> RowsOf:
        read = _decoded(node, codes, (2, 3), bits, block, width)
        return _moved(read, offsets, width) if offsets is not None else read

    codes = _required(node, 0)
    ends = _ends(codes, whole) if offsets is not None or _optional(node, 3) is not None else None
    quantization = Quantization(bits, block, offsets is not None, ends)
    return Table((rows, width), whole(codes), scales(0, 1).dtype, quantization)


def _kept(node: ir.Node) -> int | None:
    """How many columns of the rows that were looked up are kept; None where nothing is cut off."""
    readers = [use.node for use in node.outputs[0].uses()]
    if len(readers) != 1 or readers[0].op_type != "Slice" or len(readers[0].inputs) != 4:
        return None
    bounds = [None if x is None else ir.convenience.get_const_tensor(x) for x in readers[0].inputs[1:]]
    starts, ends, axes = (None if x is None else x.numpy().tolist() for x in bounds)
    return int(ends[0]) if ends is not None and (starts, axes) == ([0], [-1]) else None


def _decoded(node: ir.Node, codes: RowsOf, places: tuple[int, int], bits: int, block: int, width: int) -> RowsOf:
    """Rows of (code - zero) · scale; `places` are the inputs that hold scales and zero points."""
    scales = _required(node, places[0])
    blocks = -(-width // block)
    zeros = None
    if (value := _optional(node, places[1])) is not None:
        zeros = rows_of(value)

    def read(start: int, stop: int) -> Array:
        scale = scales(start, stop).reshape(stop - start, -1)[:, :blocks]
        return dequantize(codes(start, stop), scale, bits, block, width, None if zeros is None else zeros(start, stop))

    return read


def _moved(read: RowsOf, offsets: RowsOf, width: int) -> RowsOf:
    """Rows plus an offset per group; added in float64 and rounded once, as the exact sum would be."""

    def moved(start: int, stop: int) -> Array:
        rows, offset = read(start, stop).astype(np.float64), offsets(start, stop).astype(np.float64)
        return (rows + np.repeat(offset, width // offset.shape[1], axis=1)).astype(np.float32)

    return moved


def _ordered(read: RowsOf, order: Array) -> RowsOf:
    def ordered(start: int, stop: int) -> Array:
        rows = read(start, stop)
        result = np.empty_like(rows)
        result[:, order] = rows
        return result

    return ordered


def product_offsets(node: ir.Node) -> RowsOf | None:
    """What is added to a product for each group of its inputs: sums of the groups times a constant table."""
    for use in node.outputs[0].uses():
        if use.node.op_type != "Add":
            continue
        other = use.node.inputs[1 - use.idx]
        product = None if other is None else other.producer()
        if other is not None and other.is_initializer():  # a bias comes first
            return product_offsets(use.node)
        if product is not None and _is_transposed(product):
            sums = None if product.inputs[0] is None else product.inputs[0].producer()
            offsets = untransposed(product.inputs[1])
            if sums is not None and sums.op_type == "ReduceSum" and offsets is not None:
                return rows_of(offsets)
    return None


def _is_transposed(node: ir.Node) -> bool:
    """Whether a product takes its right factor with its axes swapped."""
    if node.op_type == "FusedMatMul":
        return node.attributes["transB"].as_int() == 1
    return node.op_type == "MatMul" and untransposed(node.inputs[1]) is not node.inputs[1]


def _lookup_offsets(node: ir.Node) -> RowsOf | None:
    """What is added to the rows that were looked up, for each group."""
    for use in node.outputs[0].uses():
        for added in use.node.outputs[0].uses() if use.node.op_type == "Reshape" else ():
            other = added.node.inputs[1 - added.idx] if added.node.op_type == "Add" else None
            tall = None if other is None else other.producer()
            chosen = None if tall is None or tall.inputs[0] is None else tall.inputs[0].producer()
            if chosen is not None and chosen.op_type == "Gather":
                return _required(chosen, 0)
    return None


def _order(node: ir.Node) -> Array | None:
    """The columns that a product picks from its input before it multiplies."""
    source = filled_up(node.inputs[0])[0]
    picked = None if source is None else source.producer()
    if picked is None or picked.op_type != "Gather" or picked.attributes["axis"].as_int() != -1:
        return None
    index = picked.inputs[1]
    if index is None or index.const_value is None:
        return None
    return stored_array(index.const_value)


def _bnb4(node: ir.Node) -> Table:
    block, width, rows, kind = (node.attributes[name].as_int() for name in ("block_size", "K", "N", "quant_type"))
    codes, scales = (_whole(node, index) for index in (1, 2))

    def read(start: int, stop: int) -> Array:
        first, last = start * width, stop * width
        values = bnb4_values(codes[first // 2 : last // 2], scales[first // block : last // block], block, kind)
        return values.reshape(stop - start, width)

    if width % block or kind not in BNB_TABLES:
        raise NotByRowsError("blocks that straddle rows")
    return Table((rows, width), read, scales.dtype, Quantization(4, block))


def _whole(node: ir.Node, index: int) -> Array:
    value = node.inputs[index]
    if value is None or value.const_value is None:
        raise NotByRowsError(node.op_type)
    return stored_array(value.const_value)
