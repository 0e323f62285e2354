"""Block quantization by ONNX Runtime's own functions, a run of rows at a time."""

from __future__ import annotations

import numpy as np

from truecast.checkpoint.model import Array

BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Block sizes that ONNX Runtime's CPU kernels take (1.31; 512 is rejected or gives zeros)."""


def blocks_per_row(width: int, block: int) -> int:
    """Number of blocks that hold a row of `width` weights, the last one padded."""
    return -(-width // block)


def quantize_rows(rows: Array, bits: int, block: int) -> tuple[Array, Array]:
    """Symmetric round-to-nearest quantization along the last axis.

    Args:
        rows: float32 [n, width].
        bits: 4 or 8.
        block: weights per scale.

    Returns:
        Codes, uint8 [n, blocks, block · bits / 8], lowest bits first, and scales, float32 [n, blocks].
        A weight is (code - 2^(bits-1)) · scale; scales may be negative.
    """
    # Not at the top: to tell what becomes of weights, the sizes above are needed, and no runtime.
    from onnxruntime.capi import _pybind_state

    quantize = {4: _pybind_state.quantize_matmul_4bits, 8: _pybind_state.quantize_matmul_8bits}[bits]
    count, width = rows.shape
    blocks = blocks_per_row(width, block)
    if width % block:
        rows = np.pad(rows, ((0, 0), (0, blocks * block - width)))
    # One long column: ONNX Runtime's function walks down columns, and our rows are whole blocks, so no transpose.
    column = np.ascontiguousarray(rows, np.float32).reshape(-1, 1)
    codes = np.zeros((1, count * blocks, block * bits // 8), np.uint8)
    scales = np.zeros(count * blocks, np.float32)
    unused = np.zeros((count * blocks * bits + 7) // 8, np.uint8)
    quantize(codes, column, scales, unused, block, 1, column.size, True)
    return codes.reshape(count, blocks, -1), scales.reshape(count, blocks)


def dequantize_rows(codes: Array, scales: Array, bits: int, width: int) -> Array:
    """The inverse of `quantize_rows`: float32 [n, width]."""
    count, blocks = scales.shape
    if bits == 4:
        codes = np.stack((codes & 15, codes >> 4), -1)
    values = codes.reshape(count, blocks, -1).astype(np.float32) - np.float32(1 << (bits - 1))
    result: Array = (values * scales[..., None]).reshape(count, -1)[:, :width]
    return result
