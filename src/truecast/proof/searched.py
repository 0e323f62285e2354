"""The bound on weights whose scales were searched for: k-quant and HQQ.

A search may clip the ends of a block to serve the rest, so no bound on a single weight follows from the checkpoint
beyond the range of its block. Three statements do hold for every block, and all are checked:

- The squared errors of a block sum to no more than rounding to nearest leaves, which follows from the checkpoint
  alone: the smaller of asymmetric rounding, with step = (max(w, 0) - min(w, 0)) / (2^n - 1) and the zero point
  round(-min(w, 0) / step), and symmetric rounding, with step = -(w farthest from 0) / 2^(n-1) and the zero point
  2^(n-1). So no scale or zero point can be off by much: it would cost more than it may.
- The root of this sum is at most `FACTOR` times what the least-squares scale of the block's own codes leaves, and
  `SPARE_STEPS` of a step for each code: both searches end at most there (1.8 times in sparse blocks of 16, and a third
  of a step where all weights lie on a grid, in 2,400 blocks of each of six distributions).
- Every code is the nearest that the block's own scale and zero point have: |held - clip(w)| is at most half a step,
  where clip is to the ends of the block's codes. So no single code can be off, however little it costs.

The quantizers keep the first by falling back to rounding to nearest where a search does not reach it.
"""

from __future__ import annotations

import numpy as np

from truecast.proof.operators import Array

ROUNDING = 2.0**-20
"""Room for float32's rounding in scale and product, in parts of the largest weight of a block."""
FACTOR, SPARE_STEPS = 2.0, 0.35
"""How far a block's error may lie above that of the least-squares scale of its own codes."""
SUM_ROUNDING = 2.0**-16
"""Room for float32's rounding in sums of squares, relative."""
CODE_ROUNDING = 2.0**-12
"""Room for float32's rounding of w / scale + zero before it becomes a code, in steps."""


def searched_shares(values: Array, held: Array, ends: tuple[Array, Array], bits: int, block: int) -> Array:
    """The largest share of the three bounds that each block takes, float64 [rows, blocks].

    Args:
        values: the checkpoint's weights [rows, width].
        held: the artifact's, of the same shape.
        ends: what the smallest and the largest code of each weight's block stand for, [rows, width].
        bits: of a code.
        block: codes per scale.
    """
    w, h, low, high = (_blocks(array, block) for array in (values, held, *ends))
    top = (1 << bits) - 1
    room = np.abs(w).max(-1) * ROUNDING + float(np.finfo(np.float32).tiny)
    size, plain, middle = (_norm(error) for error in (h - w, asymmetric_error(w, top), symmetric_error(w, top)))
    allowed = np.minimum(plain, middle)
    whole = size / (allowed * (1 + SUM_ROUNDING) + room * block**0.5)
    step = np.abs(high - low) / top
    fitted = FACTOR * _least(w, h) + SPARE_STEPS * _norm(step) + room * block**0.5
    whole = np.maximum(whole, size / fitted)
    reached = np.clip(w, np.minimum(low, high), np.maximum(low, high))
    single = (np.abs(h - reached) / (step * (0.5 + CODE_ROUNDING) + room[..., None])).max(-1)
    shares: Array = np.maximum(whole, single)
    return shares


def _least(w: Array, h: Array) -> Array:
    """The error that is left when a block is scaled as suits it best, [rows, blocks]."""
    wide, held = w.astype(np.float64), h.astype(np.float64)
    power, product = np.square(held).sum(-1), (wide * held).sum(-1)
    factor = np.divide(product, power, out=np.zeros_like(power), where=power > 0)
    return _norm(held * factor[..., None] - wide)


def _norm(error: Array) -> Array:
    result: Array = np.sqrt(np.sum(np.square(error, dtype=np.float64), -1))
    return result


def asymmetric_error(w: Array, top: int) -> Array:
    """Errors of asymmetric rounding of blocks float32 [..., block], codes from 0 to `top`."""
    low, high = np.minimum(w.min(-1, keepdims=True), 0), np.maximum(w.max(-1, keepdims=True), 0)
    step = (high - low) / np.float32(top)
    step = np.where(step > 0, step, np.float32(1))
    zero = np.rint(-low / step)
    return _rounded(w, step, zero, top) - w


def symmetric_error(w: Array, top: int) -> Array:
    """Errors of symmetric rounding of blocks float32 [..., block], codes from 0 to `top` around the middle one."""
    low, high = w.min(-1, keepdims=True), w.max(-1, keepdims=True)
    farthest, middle = np.where(high >= -low, high, low), np.float32((top + 1) // 2)
    step = np.where(farthest == 0, np.float32(1), farthest) / -middle
    return _rounded(w, step, middle, top) - w


def _rounded(w: Array, step: Array, zero: Array | np.float32, top: int) -> Array:
    """The weights that the nearest codes stand for."""
    values: Array = (np.clip(np.rint(w / step + zero), 0, top) - zero) * step
    return values


def _blocks(array: Array, block: int) -> Array:
    """[rows, blocks, block], the last block filled up with zeros."""
    rows, width = array.shape
    return np.pad(array, ((0, 0), (0, -width % block))).reshape(rows, -1, block)
