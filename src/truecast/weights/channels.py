"""Weights for products of integers: int8 codes with one scale per output channel, symmetric.

Data flow: a float matrix, a run of rows at a time → the largest |w| of every row → scale and codes → operands of
MatMulInteger, or of DequantizeLinear in front of MatMul. Codes lie as [out, in], the order of the checkpoint; the graph
swaps the axes, which ONNX Runtime does once when it loads the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from truecast.checkpoint.model import Array, StoredTensor
from truecast.weights.binding import Binding, Operand, stacked
from truecast.weights.precision import Precision
from truecast.weights.sources import finite_rows

CODES, SCALES = ".channel_codes", ".channel_scales"
"""Endings of the initializers' names."""
FACTORS = ".input_factors"
"""Ending of the name of what an input's channels are multiplied with: the reciprocals of the divisors."""
FACTORS_PACKING = "reciprocals of the divisors of an input"


@dataclass(frozen=True)
class Channels:
    """Codes int8 [rows, width] and scales float32 [rows]: a weight is code · scale of its row.

    `static` says that the input of the product has a range of its own, known beforehand. With `divisors`, float32
    [width], that is the weight times them, for an input that was divided by them.
    """

    binding: Binding
    width: int
    static: bool
    divisors: Array | None = None

    @property
    def codes(self) -> Operand:
        """int8 [rows, width]."""
        return self.binding.operands[0]

    @property
    def scales(self) -> Operand:
        """float32 [rows]."""
        return self.binding.operands[1]


def channels(
    name: str,
    tensor: StoredTensor,
    precision: Precision,
    transposed: bool = False,
    divisors: Array | None = None,
) -> Channels:
    """The form of a matrix [out, in], or [in, out] when `transposed`; `divisors` are those of the product's input."""
    rows, width = tensor.shape[::-1] if transposed else tensor.shape
    codes = Operand(f"{name}{CODES}", ir.DataType.INT8, (rows, width))
    scales = Operand(f"{name}{SCALES}", ir.DataType.FLOAT, (rows,))

    def produce(start: int, stop: int) -> Sequence[Array]:
        swapped = finite_rows(tensor, 0, width)[:, start:stop].T if transposed else None
        values = finite_rows(tensor, start, stop) if swapped is None else swapped
        return quantize_channels(values if divisors is None else values * divisors, precision.top)

    packing = f"int8 per channel, codes up to {precision.top}"
    binding = Binding((codes, scales), (tensor.name,), packing, rows, width, produce)
    return Channels(binding, width, precision.static, divisors)


def quantize_channels(rows: Array, top: int) -> tuple[Array, Array]:
    """Symmetric round-to-nearest quantization: codes int8 [n, width] in -top..top, and scales float32 [n].

    A row of zeros has the scale 1.
    """
    largest = np.abs(rows).max(1)
    scales = np.where(largest > 0, largest / np.float32(top), 1).astype(np.float32)
    codes = np.rint(rows / scales[:, None]).clip(-top, top).astype(np.int8)
    return codes, scales


def channels_alike(forms: Sequence[object]) -> bool:
    """Whether weights can lie one below the other in one product of integers."""
    known = [form for form in forms if isinstance(form, Channels)]
    return len(known) == len(forms) and len({(form.width, form.static, _bytes(form)) for form in known}) == 1


def _bytes(form: Channels) -> bytes:
    return b"" if form.divisors is None else form.divisors.tobytes()


def stack_channels(name: str, forms: Sequence[Channels]) -> Channels:
    """Several weights of one input as one."""
    binding = stacked([form.binding for form in forms], [f"{name}{CODES}", f"{name}{SCALES}"])
    return replace(forms[0], binding=binding)
