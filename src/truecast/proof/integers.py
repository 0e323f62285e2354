"""Products of integers, read back from the graph: what they multiply with, and the same products of floats.

Data flow: MatMulInteger with its Cast and Mul, or MatMul between two DequantizeLinear → the weight that its codes and
scales stand for, row by row (`integer_rows`) → a copy of the graph that multiplies the input as it was, unrounded, with
those very weights (`float_products`). What is left between the copy and the author's model is neither the weights'
rounding nor the input's: it is an error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from truecast.dialects.expand import NodeWriter
from truecast.proof.constants import NotByRowsError, RowsOf, rows_of, stored_array, untransposed
from truecast.proof.operators import Array
from truecast.weights.channels import FACTORS

COLUMN_AXIS = 1
"""Axis of the scales of a weight that DequantizeLinear decodes: the outputs, once the axes were swapped."""


@dataclass(frozen=True)
class IntegerProduct:
    """One product: `input` is what was quantized, `codes` [rows, width] and `scales` [rows] are the weight's.

    `result` is the product of floats, before a bias is added. `static` tells a known range from a measured one.
    `factors` [width] is what the channels of the input were multiplied with before they were rounded, or None.
    """

    input: ir.Value
    codes: ir.Value
    scales: ir.Value
    result: ir.Value
    static: bool
    factors: ir.Value | None = None


def integer_product(node: ir.Node) -> IntegerProduct:
    """The product around a MatMulInteger, or around the DequantizeLinear of a weight; NotByRowsError for others."""
    return _measured(node) if node.op_type == "MatMulInteger" else _ranged(node)


def integer_products(model: ir.Model) -> list[IntegerProduct]:
    """Every product of integers with a constant weight."""
    found = []
    for node in model.graph:
        if node.op_type in ("MatMulInteger", "DequantizeLinear"):
            try:
                found.append(integer_product(node))
            except NotByRowsError:  # an activation, or a weight in blocks
                continue
    return found


def _measured(node: ir.Node) -> IntegerProduct:
    """y = Cast(MatMulInteger(codes of x, weight, zero)) · (scale of x · scales)."""
    quantizer = _producer(node.inputs[0])
    if (
        quantizer.op_type != "DynamicQuantizeLinear"
        or len(node.inputs) != 3
        or node.inputs[2] is not quantizer.outputs[2]
    ):
        raise NotByRowsError("MatMulInteger of an input that DynamicQuantizeLinear did not make")
    scaled = _only_reader(_only_reader(node, "Cast"), "Mul")
    factor = next((p for value in scaled.inputs if (p := _producer(value)).op_type == "Mul"), None)
    if factor is None:
        raise NotByRowsError("a sum of integers that is not scaled")
    scales = [value for value in factor.inputs if value is not quantizer.outputs[1]]
    if len(scales) != 1 or scales[0] is None:
        raise NotByRowsError("a sum of integers without the scale of its input")
    return IntegerProduct(
        input=_value(quantizer.inputs[0]),
        codes=_value(untransposed(node.inputs[1])),
        scales=scales[0],
        result=scaled.outputs[0],
        static=False,
        factors=_factors(quantizer.inputs[0]),
    )


def _ranged(node: ir.Node) -> IntegerProduct:
    """y = DequantizeLinear(codes of x) · DequantizeLinear(weight)."""
    axis = node.attributes.get("axis")
    if "block_size" in node.attributes or axis is None or axis.as_int() != COLUMN_AXIS or len(node.inputs) != 2:
        raise NotByRowsError(node.op_type)
    product = _only_reader(node, "MatMul")
    decoder = _producer(product.inputs[0])
    quantizer = _producer(decoder.inputs[0]) if decoder.op_type == "DequantizeLinear" else decoder
    if quantizer.op_type != "QuantizeLinear" or list(quantizer.inputs[1:]) != list(decoder.inputs[1:]):
        raise NotByRowsError("a product whose input is not rounded")
    return IntegerProduct(
        input=_value(quantizer.inputs[0]),
        codes=_value(untransposed(node.inputs[0])),
        scales=_value(node.inputs[1]),
        result=product.outputs[0],
        static=True,
        factors=_factors(quantizer.inputs[0]),
    )


def _factors(value: ir.Value | None) -> ir.Value | None:
    """The factors that an input's channels were multiplied with, maybe behind a further axis."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Unsqueeze":
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    if node is None or node.op_type != "Mul":
        return None
    return next((x for x in node.inputs if x is not None and x.is_initializer() and _is_factors(x)), None)


def _is_factors(value: ir.Value) -> bool:
    return (value.name or "").endswith(FACTORS)


def _value(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise NotByRowsError("an input that is not there")
    return value


def _producer(value: ir.Value | None) -> ir.Node:
    node = None if value is None else value.producer()
    if node is None:
        raise NotByRowsError("an input of the graph")
    return node


def _only_reader(node: ir.Node, kind: str) -> ir.Node:
    readers = [use.node for use in node.outputs[0].uses()]
    if len(readers) != 1 or readers[0].op_type != kind:
        raise NotByRowsError(f"{node.op_type} that is not read by one {kind}")
    return readers[0]


# The weight ---------------------------------------------------------------------------------------------------------


def integer_rows(product: IntegerProduct) -> tuple[RowsOf, tuple[int, int], int, np.dtype[np.generic]]:
    """Rows of code · scale, the weight's shape, the largest code that it has, and the dtype of its scales."""
    codes, scales = rows_of(product.codes), rows_of(product.scales)
    tensor, stored = product.codes.const_value, product.scales.const_value
    if tensor is None or stored is None or tensor.dtype != ir.DataType.INT8:
        raise NotByRowsError("codes that are no int8 constants")
    rows, width = (int(size) for size in tensor.shape.numpy())
    if tuple(stored.shape.numpy()) != (rows,):
        raise NotByRowsError("scales that are not one per output")

    factors = factors_of(product, width)

    def read(start: int, stop: int) -> Array:
        values: Array = codes(start, stop).astype(np.float32) * scales(start, stop).astype(np.float32)[:, None]
        return values if factors is None else values * factors

    largest = int(np.abs(codes(0, rows).astype(np.int16)).max(initial=0))
    return read, (rows, width), largest, scales(0, 1).dtype


def factors_of(product: IntegerProduct, width: int) -> Array | None:
    """The factors of the input's channels, positive numbers [width]; raises NotByRowsError for others."""
    if product.factors is None or product.factors.const_value is None:
        return None
    factors = stored_array(product.factors.const_value)
    if factors.shape != (width,) or not (np.isfinite(factors).all() and (factors > 0).all()):
        raise NotByRowsError("factors that are not one positive number per channel")
    return factors


# The same products of floats ------------------------------------------------------------------------------------------


def float_products(model: ir.Model) -> int:
    """Makes every product of integers one of floats, with the same weights and an unrounded input; returns how many.

    Weights are cast and scaled by nodes, so that the codes stay in their memory-mapped file until a session is made.
    """
    products = integer_products(model)
    for product in products:
        before = product.result.producer()
        assert before is not None
        write = NodeWriter(before)
        numbers = write.op("Cast", [product.codes], {"to": ir.DataType.FLOAT})
        weight = write.op("Mul", [numbers, write.op("Unsqueeze", [product.scales, write.ints(1)])])
        turned = write.op("Transpose", [weight], {"perm": [1, 0]})
        result = write.op("MatMul", [product.input, turned])
        name, result.shape, result.type = product.result.name, product.result.shape, product.result.type
        ir.convenience.replace_all_uses_with(product.result, result, replace_graph_outputs=True)
        product.result.name, result.name = f"{name}.integers", name
    return len(products)
