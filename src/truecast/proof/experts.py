"""What the nodes of experts read: the weights of MoE and QMoE, and of products with the matrices of all experts.

Data flow: a node → its codes or floats with scales and zero points → a `Table` for each weight and bias, whose rows are
experts, [experts, out, in].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from truecast.dialects.expand import CONTRIB, NodeWriter, finish
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


def feeds_experts(node: ir.Node) -> bool:
    """Whether MoE reads what a node gives, as one of its weights."""
    return any(use.node.op_type == "MoE" for use in node.outputs[0].uses())


def input_of(node: ir.Node, place: int) -> ir.Value | None:
    """An input, None where it is left out."""
    return node.inputs[place] if place < len(node.inputs) else None


def _floats(value: ir.Value, stack: Stack) -> Table:
    """Values, or codes that the graph decodes, when it is loaded or as `float_experts` has it."""
    decoder = value.producer()
    if decoder is not None and decoder.op_type == "DequantizeLinear":
        codes, scales, zeros = decoder.inputs
        points = None if zeros is None or not zeros.is_initializer() else zeros
        return _table([codes, scales, points], BYTE_BITS, decoder.attributes["block_size"].as_int(), stack)
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
    codes, scales, _, zeros = (input_of(node, place) for place in CODE_PLACES[number])
    bits, block = (node.attributes[name].as_int() for name in ("expert_weight_bits", "block_size"))
    return _table([codes, scales, zeros], bits, block, stack)


def _table(operands: Sequence[ir.Value | None], bits: int, block: int, stack: Stack) -> Table:
    """Codes, scales and zero points as a weight."""
    if operands[0] is None or operands[1] is None:
        raise NotByRowsError("codes without scales")
    codes, scales = rows_of(operands[0]), rows_of(operands[1])
    zeros = None if len(operands) < 3 or operands[2] is None else rows_of(operands[2])

    def whole(codes: RowsOf) -> RowsOf:
        return lambda start, stop: _decoded(
            codes(start, stop), scales(start, stop), None if zeros is None else zeros(start, stop), bits, block
        )

    first = whole(codes)(0, 1)
    ends = None if zeros is None else (whole(_filled(codes, 0)), whole(_filled(codes, 255)))
    shape = (_experts(operands[0]), *first.shape[1:])
    quantization = Quantization(bits, block, ends=ends)
    return Table(shape, whole(codes), scales(0, 1).dtype, quantization, stack)


def _filled(codes: RowsOf, byte: int) -> Callable[[int, int], Array]:
    return lambda start, stop: np.full_like(codes(start, stop), byte)


def _decoded(codes: Array, scales: Array, zeros: Array | None, bits: int, block: int) -> Array:
    experts, outputs, length = codes.shape
    rows, width = experts * outputs, length * BYTE_BITS // bits
    points = None if zeros is None else zeros.reshape(rows, -1)
    return dequantize(codes.reshape(rows, -1), scales.reshape(rows, -1), bits, block, width, points).reshape(
        experts, outputs, width
    )


INT8_LEVEL = 4
"""QMoE's accuracy level at which its kernels for 4 bits round what products take to int8."""


def rounds(node: ir.Node) -> bool:
    """Whether a kernel of QMoE takes int8 activations: with 8 bits always (operator schema, ONNX Runtime 1.31)."""
    level, bits = node.attributes.get_int("accuracy_level", 0), node.attributes.get_int("expert_weight_bits", 4)
    return node.op_type == "QMoE" and (bits == BYTE_BITS or level == INT8_LEVEL)


def float_experts(model: ir.Model) -> None:
    """Makes the products of every QMoE take floats: of 8 bits, by a MoE whose weights are decoded at every run."""
    for node in [node for node in model.graph if node.op_type == "QMoE"]:
        if node.attributes.get_int("expert_weight_bits", 4) != BYTE_BITS:
            node.attributes.add(ir.AttrInt64("accuracy_level", 0))
            continue
        write = NodeWriter(node)
        weights, biases = [], []
        for codes, scales, bias, zeros in CODE_PLACES:
            weights.append(_decode(write, node, (codes, scales, zeros)))
            biases.append(input_of(node, bias))
        kept = {name: a.value for name, a in node.attributes.items() if name not in OF_CODES}
        inputs = [*node.inputs[:2], weights[0], biases[0], weights[1], biases[1]]
        name = node.outputs[0].name
        result = write.op("MoE", inputs, kept, domain=CONTRIB)
        result.producer().name = node.name  # type: ignore[union-attr]
        finish(node, result)
        result.name = name


OF_CODES = frozenset({"expert_weight_bits", "block_size", "accuracy_level"})
"""Attributes of QMoE that MoE has not."""


def _decode(write: NodeWriter, node: ir.Node, places: Sequence[int]) -> ir.Value:
    codes, scales, zeros = (input_of(node, place) for place in places)
    assert scales is not None
    if zeros is None:
        middle = write.scalar(1 << (BYTE_BITS - 1), ir.DataType.UINT8)
        zeros = write.op("Expand", [middle, write.op("Shape", [scales])])
    attributes = {"axis": 2, "block_size": node.attributes["block_size"].as_int()}
    return write.op("DequantizeLinear", [codes, scales, zeros], attributes)
