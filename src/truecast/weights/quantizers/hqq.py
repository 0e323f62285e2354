"""HQQ, half-quadratic quantization (Badri and Shaji, 2023): the zero point of a block that suits most of its weights.

A few steps of an alternating minimization of Σ|error|^p, p below 1, which forgives the few largest errors. Unlike the
authors' code, every block keeps the best zero point of its own steps, and p is 3/4 rather than 0.7: its powers are
square roots, which every processor rounds alike. The zero point is no code; the weight gets an offset instead.
"""

from __future__ import annotations

import numpy as np

from truecast.checkpoint.model import Array
from truecast.weights.quantizers.blocks import Columns, Quantized, nearest, searched

STEPS = 20
BETA, KAPPA = 10.0, 1.01
"""Weight of the quadratic term and its growth per step (the authors' defaults, as are the 20 steps)."""
LEAST = np.float32(1e-8)
"""Added to an error before it is raised to a negative power."""


def hqq_rows(rows: Array, bits: int, block: int) -> Quantized:
    """Codes, scales and offsets of rows float32 [n, width]; a weight is (code - 2^(bits-1)) · scale + offset."""
    codes, scales, zeros = searched(rows, bits, block, hqq)
    middle = np.float32(1 << (bits - 1))
    return Quantized(codes, scales, offsets=(middle - zeros) * scales)


def hqq(x: Array, top: int) -> Columns:
    """The best zero point of each column; the scale is that of the column's range."""
    low, span = x.min(0), x.max(0) - x.min(0)
    span = np.where(span > 0, span, np.maximum(np.abs(low), np.float32(LEAST)))
    scale = span / np.float32(top)
    zero = np.rint(-low / scale)
    kept, least = zero, np.full(x.shape[1], np.inf, np.float32)
    scaled, beta = x / scale, BETA
    for _ in range(STEPS):
        codes = np.clip(np.rint(scaled + zero), 0, top)
        missed = scaled - codes + zero
        error = missed * scale
        size = np.abs(error)
        root = np.sqrt(np.sqrt(size + LEAST))
        norm = np.add.reduce(size / root, axis=0)
        kept, least = np.where(norm < least, zero, kept), np.minimum(norm, least)
        shrunk = np.copysign(np.maximum(size - np.float32(1 / beta) / root, 0), error)
        zero = np.add.reduce(codes - scaled + shrunk / scale, axis=0) / np.float32(len(x))
        beta *= KAPPA
    return Columns(nearest(x, scale, kept, top), scale, kept)
