"""Round to nearest, symmetric: ONNX Runtime's own functions."""

from __future__ import annotations

from truecast.checkpoint.model import Array
from truecast.weights.quantize import quantize_rows
from truecast.weights.quantizers.blocks import Quantized


def rtn_rows(rows: Array, bits: int, block: int) -> Quantized:
    """Codes and scales of rows float32 [n, width]; a weight is (code - 2^(bits-1)) · scale."""
    codes, scales = quantize_rows(rows, bits, block)
    return Quantized(codes, scales)
