"""The bound of weights that keep the checkpoint's own codes and scales: |held - w| over what it may be.

| the weight is | bound |
|---|---|
| code and scale | 0 |
| … and the library multiplies in another order than its encoding | 2 units in the last place of w; the encoding's: 0 |
| … and an offset: a sum of two terms | 2 units in the last place of the larger: offset, or scale · largest code |

The bounds follow from the checkpoint alone.
"""

from __future__ import annotations

import numpy as np

from truecast.checkpoint.encoding import Affine, Encoding, decode, groups_of, product
from truecast.proof.operators import Array

ULP = 2.0**-23
"""Distance of neighbouring float32 numbers, in parts of the smaller one."""
ROUNDINGS = 2.0
"""Units in the last place: one for each of two multiplications, or terms."""


def own_shares(encoding: Encoding, values: Array, held: Array, start: int, moved: bool) -> Array:
    """Shares of the bound, [rows, width].

    Args:
        encoding: as the checkpoint stores the weight.
        values: rows of the weight as the library decodes it, float32 [rows, width].
        held: the same rows as the graph reads them.
        start: the first row's number.
        moved: whether the graph adds an offset to a product.
    """
    width, stop = values.shape[1], start + len(values)
    error = np.abs(values.astype(np.float64) - held)
    if moved and isinstance(encoding, Affine) and encoding.offsets:
        return _over(error, largest_terms(encoding, width, start, stop))
    if not error.any():
        return error
    as_encoded = held == decode(encoding, width, start, stop)
    return np.where(as_encoded, _over(error, np.abs(values)), np.where(error == 0, 0.0, np.inf))


def _over(error: Array, largest: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        shares: Array = np.where(error == 0, 0.0, error / (ROUNDINGS * ULP * largest))
    return shares


def largest_terms(encoding: Affine, width: int, start: int, stop: int) -> Array:
    """The larger of offset and scale · largest code, of every weight of rows [start, stop): float32 [rows, width]."""
    groups = groups_of(width, encoding.group)
    scales, offsets = (np.abs(product(factors, groups, start, stop)) for factors in (encoding.scales, encoding.offsets))
    larger = np.maximum(scales * np.float32((1 << encoding.bits) - 1), offsets)
    terms: Array = np.repeat(larger, encoding.group, axis=1)[:, :width]
    if encoding.order is None:
        return terms
    result = np.empty_like(terms)
    result[:, encoding.order] = terms
    return result
