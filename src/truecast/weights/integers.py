"""The nodes of a product of integers, in operators that ONNX itself has.

| range of the input | nodes |
|---|---|
| measured at every run | DynamicQuantizeLinear, MatMulInteger, Cast, Mul |
| known beforehand | QuantizeLinear, DequantizeLinear, MatMul with a DequantizeLinear of the weight |

ONNX Runtime (1.31) makes one DynamicQuantizeMatMul of the first, or MatMulIntegerToFloat where products share an input,
and QuantizeLinear and MatMulIntegerToFloat of the second.

Data flow: the input of one or several products → (its channels divided) → codes of it, made once → a product for every
weight → Add of the bias. The input is uint8 with a zero point, the weights are int8 without one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from truecast.checkpoint.model import Array
from truecast.dialects.expand import NodeWriter
from truecast.weights.channels import Channels
from truecast.weights.emission import Values

CODES = 255
"""Steps between the smallest and the largest code of an input."""
FLOAT, UINT8 = ir.DataType.FLOAT, ir.DataType.UINT8
MATRIX_RANK = 2


@dataclass(frozen=True)
class Range:
    """The smallest and the largest value that an input takes."""

    low: float
    high: float

    @property
    def scale(self) -> np.float32:
        """Width of a step; the range is widened to hold zero."""
        width = max(self.high, 0.0) - min(self.low, 0.0)
        return np.float32(width / CODES) if width > 0 else np.float32(1)

    @property
    def zero(self) -> int:
        """The code of zero."""
        return int(np.clip(np.rint(-min(self.low, 0.0) / self.scale), 0, CODES))


@dataclass(frozen=True, eq=False)
class Seen:
    """What calibration saw of a product's input.

    `divisors`, float32 [width], are what every channel is divided by before it is rounded, so that one channel far
    beyond the others does not take their steps; the weight is multiplied by them. None where none is far beyond.
    `range` is that of the divided input, `whole` that of the input as it was.
    """

    range: Range
    divisors: Array | None = None
    whole: Range | None = None


@dataclass(frozen=True)
class Quantized:
    """The input of products: with `codes`, `scale` and `zero` of each run, or `floats` that went through codes."""

    codes: ir.Value | None = None
    scale: ir.Value | None = None
    zero: ir.Value | None = None
    floats: ir.Value | None = None


def at_first_use(x: ir.Value, graph: ir.Graph) -> NodeWriter:
    """Writes in front of the first node that reads `x`, so that all of its readers may share what is written."""
    readers = {use.node for use in x.uses()}
    return NodeWriter(next(node for node in graph if node in readers))


def measured(write: NodeWriter, x: ir.Value) -> Quantized:
    """Codes of an input by the range that it has at the time."""
    codes, scale, zero = write.ops("DynamicQuantizeLinear", [x], [None, None, None])
    return Quantized(codes, scale, zero)


def ranged(write: NodeWriter, x: ir.Value, known: Range) -> Quantized:
    """An input rounded to the codes of a known range.

    A matrix gets a third axis: ONNX Runtime makes a float Gemm of MatMul and Add where both are matrices.
    """
    if x.shape is not None and len(x.shape) == MATRIX_RANK:
        x = write.op("Unsqueeze", [x, write.ints(0)])
    scale, zero = write.scalar(float(known.scale), FLOAT), write.scalar(known.zero, UINT8)
    codes = write.op("QuantizeLinear", [x, scale, zero])
    return Quantized(floats=write.op("DequantizeLinear", [codes, scale, zero]))


def integer_product(
    write: NodeWriter, form: Channels, x: ir.Value, given: Quantized, values: Values, bias: ir.Value | None, name: str
) -> ir.Value:
    """x · weightᵀ + bias.

    Args:
        write: where the nodes go.
        form: of the weight.
        x: the input as it was, [..., width].
        given: the same as `measured` or `ranged` made it.
        values: the weight's operands as graph values.
        bias: [rows], or None.
        name: of the result.
    """
    codes, scales = values[form.codes.name], values[form.scales.name]
    turned = write.op("Transpose", [codes], {"perm": [1, 0]})
    flat = given.floats is not None and x.shape is not None and len(x.shape) == MATRIX_RANK
    part = None if bias is not None or flat else name
    if given.floats is not None:
        weight = write.op("DequantizeLinear", [turned, scales], {"axis": 1})
        result = write.op("MatMul", [given.floats, weight], name=part or f"{name}.product")
    else:
        sums = write.op("MatMulInteger", [given.codes, turned, given.zero])
        factor = write.op("Mul", [given.scale, scales])
        floats = write.op("Cast", [sums], {"to": FLOAT})
        result = write.op("Mul", [floats, factor], name=part or f"{name}.product")
    if bias is not None:
        result = write.op("Add", [result, bias], name=f"{name}.sum" if flat else name)
    return write.op("Squeeze", [result, write.ints(0)], name=name) if flat else result
