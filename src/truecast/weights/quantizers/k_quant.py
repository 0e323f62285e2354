"""k-quant: the scale of each block by weighted least squares over a few trial scales, as llama.cpp's K types do it.

Large weights count more (root mean square + |x|, llama.cpp's weighting without an importance matrix). Other than there,
the zero point is a code, which kernels read as it is; it is rounded for every trial, so that the scale fits the zero
point that is kept.
"""

from __future__ import annotations

import numpy as np

from truecast.checkpoint.bits import pack
from truecast.checkpoint.model import Array
from truecast.weights.quantizers.blocks import Columns, Quantized, nearest, searched, squares

TRIALS = 20
WIDEST = 1.0
"""Trial ranges span from one code less to one code more than there are (llama.cpp, make_qkx2_quants: 20 steps of 0.1
from -1)."""


def k_quant_rows(rows: Array, bits: int, block: int) -> Quantized:
    """Codes, scales and zero points of rows float32 [n, width]; a weight is (code - zero) · scale."""
    codes, scales, zeros = searched(rows, bits, block, k_quant)
    return Quantized(codes, scales, pack(zeros.astype(np.uint8), bits))


def k_quant(x: Array, top: int) -> Columns:
    """The best trial of each column; codes from 0 to `top`."""
    weights = np.sqrt(squares(x) / np.float32(len(x))) + np.abs(x)
    low, high = np.minimum(x.min(0), 0), np.maximum(x.max(0), 0)
    span = np.where(high > low, high - low, np.float32(top))
    best = np.zeros(x.shape[1], np.float32)
    scale, zero = span / np.float32(top), np.rint(-low * (np.float32(top) / span))
    for trial in range(TRIALS + 1):
        factor = np.float32(top + WIDEST * (2 * trial - TRIALS) / TRIALS)
        inverse = factor / span
        shift = np.clip(np.rint(-low * inverse), 0, top)
        gain, fitted = _fit(x, weights, inverse, shift, top)
        better = gain > best
        best, scale, zero = np.where(better, gain, best), np.where(better, fitted, scale), np.where(better, shift, zero)
    return Columns(nearest(x, scale, zero, top), scale, zero)


def _fit(x: Array, weights: Array, inverse: Array, shift: Array, top: int) -> tuple[Array, Array]:
    """The scale that fits a trial's codes best, and by how much Σ w·x² falls with it."""
    steps = x * inverse
    steps += shift
    np.rint(steps, out=steps)
    np.clip(steps, 0, top, out=steps)
    steps -= shift
    weighted = weights * steps
    steps *= weighted
    power = np.add.reduce(steps, axis=0)
    weighted *= x
    product = np.add.reduce(weighted, axis=0)
    fits = (power > 0) & (product > 0)
    fitted = np.divide(product, power, out=np.zeros_like(product), where=fits)
    return fitted * product, fitted
