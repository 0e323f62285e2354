"""What the nodes of experts read: the weights of MoE and QMoE, and of products with the matrices of all experts.

Data flow: a node → its codes or floats with scales and zero points → a `Table` for each weight and bias, whose rows are
experts, [experts, out, in].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from truecast.proof.constants import NotByRowsError, RowsOf, rows_of
from truecast.proof.operators import BYTE_BITS, Array, dequantize
from truecast.proof.table import Quantization, Stack, Table

OPERATORS = frozenset({"MoE", "QMoE"})
FLOAT_PLACES = ((2, 3), (4, 5))
"""Inputs of MoE: weight and bias of either product."""
CODE_PLACES = ((2, 3, 4, 11), (5, 6, 7, 12))
"""Inputs of QMoE: codes, scales, bias and zero points of either product."""
ALL_EXPERTS = [0, 2, 1]
"""The swap of axes behind the matrices of all experts [experts, out, in]."""


def experts_tables(node: ir.Node) -> Iterator[tuple[ir.Value, Table]]:
    """The weights and biases of MoE or QMoE."""
    turns = node.attributes.get_int("swiglu_fusion", 0) == 1
    for number in range(2):
        stack = Stack(turns and number == 0)
        if node.op_type == "MoE":
            weight, bias = (input_of(node, place) for place in FLOAT_PLACES[number])
            table = None if weight is None else _floats(weight, stack)
        else:
            weight, bias = (input_of(node, CODE_PLACES[number][place]) for place in (0, 2))
            table = coded_table(node, number, stack)
        if weight is not None and table is not None:
            yield weight, table
        if bias is not None:
            yield bias, _floats(bias, stack)


def product_table(node: ir.Node) -> tuple[ir.Value, Table] | None:
    """The weight of a product with the matrices of all experts; None for other products."""
    swap = None if node.inputs[1] is None else node.inputs[1].producer()
    if swap is None or swap.op_type != "Transpose" or list(swap.attributes["perm"].as_ints()) != ALL_EXPERTS:
        return None
    assert swap.inputs[0] is not None
    return swap.inputs[0], _floats(swap.inputs[0], Stack(turns=False))


def input_of(node: ir.Node, place: int) -> ir.Value | None:
    """An input, None where it is left out."""
    return node.inputs[place] if place < len(node.inputs) else None


def _floats(value: ir.Value, stack: Stack) -> Table:
    """Values, or codes that the graph decodes when it is loaded."""
    read = rows_of(value)
    first = read(0, 1)
    return Table((_experts(value), *first.shape[1:]), read, first.dtype, _decoder(value), stack)


def _experts(value: ir.Value) -> int:
    """The number of experts: the first axis of the initializer that a value is made of."""
    node = value.producer()
    while node is not None:
        value = next(v for v in node.inputs if v is not None)
        node = value.producer()
    assert value.const_value is not None
    return int(value.const_value.shape.numpy()[0])


def _decoder(value: ir.Value) -> Quantization | None:
    """How a value is decoded from codes: [experts, out, blocks, block], scaled; None for other values."""
    node = value.producer()
    scaled = None if node is None or node.op_type != "Reshape" or node.inputs[0] is None else node.inputs[0].producer()
    if scaled is None or scaled.op_type != "Mul":
        return None
    read, codes = rows_of(scaled.outputs[0]), _codes_below(value)
    whole, packed = read(0, 1), rows_of(codes)(0, 1)
    bits = packed.shape[-1] * BYTE_BITS // (whole.shape[-2] * whole.shape[-1])
    uneven = _has_points(scaled)
    ends = _ends_of(scaled, bits) if uneven else None
    return Quantization(bits, whole.shape[-1], ends=ends)


def _codes_below(value: ir.Value) -> ir.Value:
    node = value.producer()
    while node is not None:
        assert node.inputs[0] is not None
        value = node.inputs[0]
        node = value.producer()
    return value


def _has_points(scaled: ir.Node) -> bool:
    centred = None if scaled.inputs[0] is None else scaled.inputs[0].producer()
    return centred is not None and centred.op_type == "Sub"


def _ends_of(scaled: ir.Node, bits: int) -> tuple[RowsOf, RowsOf]:
    """What the smallest and the largest code of each weight's block stand for, [experts, out, in]."""
    centred = None if scaled.inputs[0] is None else scaled.inputs[0].producer()
    assert centred is not None and centred.inputs[1] is not None and scaled.inputs[1] is not None
    points, scales, codes = rows_of(centred.inputs[1]), rows_of(scaled.inputs[1]), rows_of(scaled.outputs[0])

    def end(code: int) -> RowsOf:
        def read(start: int, stop: int) -> Array:
            value = (np.float32(code) - points(start, stop)) * scales(start, stop)
            wide = np.broadcast_to(value, codes(start, stop).shape)
            return wide.reshape(*wide.shape[:2], -1)

        return read

    return end(0), end((1 << bits) - 1)


def coded_table(node: ir.Node, number: int, stack: Stack) -> Table:
    """The weight of the first or the second product of QMoE."""
    places = [input_of(node, place) for place in CODE_PLACES[number]]
    if places[0] is None or places[1] is None:
        raise NotByRowsError(node.op_type)
    codes, scales = rows_of(places[0]), rows_of(places[1])
    zeros = None if places[3] is None else rows_of(places[3])
    bits, block = code_bits(node, number), node.attributes["block_size"].as_int()

    def whole(codes: RowsOf) -> RowsOf:
        return lambda start, stop: _decoded(
            codes(start, stop), scales(start, stop), None if zeros is None else zeros(start, stop), bits, block
        )

    first = whole(codes)(0, 1)
    ends = None
    if zeros is not None:
        ends = tuple(whole(_filled(codes, byte)) for byte in (0, 255))
    shape = (_experts(places[0]), *first.shape[1:])
    quantization = Quantization(bits, block, ends=None if ends is None else (ends[0], ends[1]))
    return Table(shape, whole(codes), scales(0, 1).dtype, quantization, stack)


def code_bits(node: ir.Node, number: int) -> int:
    """Bits of the codes of the first or the second product."""
    common = node.attributes.get_int("expert_weight_bits", 4)
    return node.attributes.get_int(f"fc{number + 1}_expert_weight_bits", common)


def _filled(codes: RowsOf, byte: int) -> Callable[[int, int], Array]:
    return lambda start, stop: np.full_like(codes(start, stop), byte)


def _decoded(codes: Array, scales: Array, zeros: Array | None, bits: int, block: int) -> Array:
    experts, outputs, length = codes.shape
    rows, width = experts * outputs, length * BYTE_BITS // bits
    points = None if zeros is None else zeros.reshape(rows, -1)
    return dequantize(codes.reshape(rows, -1), scales.reshape(rows, -1), bits, block, width, points).reshape(
        experts, outputs, width
    )
