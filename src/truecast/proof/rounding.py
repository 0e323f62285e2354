"""The bound on weights that truecast rounded to nearest by itself: made again, from the method's definition.

| form | scale of a block | code of w |
|---|---|---|
| symmetric around the middle code, 2^(n-1) | (weight farthest from zero) / -2^(n-1) | nearest to w / scale + 2^(n-1) |
| as far on both sides, up to `top` | max|w| / top | nearest to w / scale |

Codes are cut off at the ends. The scale follows from the checkpoint alone; what is held must be a whole number of it,
and that number the nearest to the weight. Only where a weight lies between two codes may float32's rounding choose
either; where a block's largest weight is there with both signs, either may give the scale its sign.
"""

from __future__ import annotations

import numpy as np

from truecast.proof.operators import Array

WHOLE = 2.0**-20
"""Room for float32's rounding of scale and product, in parts of the block's largest value."""
TIE = 2.0**-12
"""Room for float32's rounding of w / scale before it becomes a code, in steps."""
HALF_SCALE = 2.0**-11
"""The same where scales are stored in float16."""


def rounded_shares(values: Array, held: Array, middle: int, top: int | None, half: bool = False) -> Array:
    """Shares of the bound, float64 [rows, blocks].

    Args:
        values: the checkpoint's weights [rows, blocks, block].
        held: the artifact's, of the same shape.
        middle: the code of zero, 2^(n-1).
        top: the largest code where they go from -top to top; None for codes from -middle to middle - 1.
        half: whether scales are stored in float16.
    """
    w, h = values.astype(np.float64), held.astype(np.float64)
    high, low = w.max(-1, keepdims=True), w.min(-1, keepdims=True)
    largest = np.maximum(high, -low)
    room = HALF_SCALE + WHOLE if half else WHOLE
    if top is not None:
        return _shares(w, h, largest / top, (-top, top), room)
    ends = (-middle, middle - 1)
    usual = _shares(w, h, np.where(high > -low, high, low) / -middle, ends, room)
    other = _shares(w, h, largest / -middle, ends, room)
    return np.where((high == -low)[..., 0], np.minimum(usual, other), usual)


def _shares(w: Array, h: Array, scale: Array, ends: tuple[int, int], room: float) -> Array:
    """The larger share that a block takes of: whole codes; the nearest code."""
    step = np.where(scale == 0, 1.0, scale)
    code, wanted = h / step, np.clip(w / step, *ends)
    whole = np.clip(np.rint(code), *ends)
    off = np.abs(code - whole) / (room * max(map(abs, ends)))
    far = np.abs(whole - wanted) / (0.5 + TIE)
    worst = np.maximum(off, far).max(-1)
    result: Array = np.where((scale == 0)[..., 0], np.where((h == 0).all(-1), 0.0, np.inf), worst)
    return np.where(np.isnan(result), np.inf, result)
