"""Measures of how two sets of logits differ, made a few positions at a time so that memory stays small."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from truecast.proof.operators import Array

CHUNK_VALUES = 1 << 22
"""Logits compared at once: 16 MiB of float32."""


@dataclass(frozen=True)
class Gap:
    """The largest difference of two arrays of logits.

    `error` is max|y - r|, `scale` is max|r| over the positions compared, `at` is (row, position) of the error, and
    `finite` says whether every value of y is, at any position, but for those that r has as well. Without positions to
    compare, error and scale are 0.
    """

    error: float
    scale: float
    at: tuple[int, int]
    finite: bool


def largest_gap(got: Array, want: Array, real: Array) -> Gap:
    """Compares logits [batch, n, vocab] at the positions where `real` [batch, n] is true; NaN equals NaN alone."""
    error, scale, at, finite = 0.0, 0.0, (0, 0), True
    for row, part in _chunks(got.shape):
        keep = real[row, part]
        y, r = without_odd(got[row, part], want[row, part])
        finite = finite and bool(np.isfinite(y).all())
        if not keep.any():
            continue
        y, r = y[keep], r[keep]
        worst = np.abs(y - r).max(-1)
        scale = max(scale, float(np.abs(r).max(initial=0, where=np.isfinite(r))))
        if not worst.max() <= error:  # NaN counts as worse
            error = float(worst.max())
            at = (row, part.start + int(np.flatnonzero(keep)[worst.argmax()]))
    return Gap(error, scale, at, finite)


@dataclass(frozen=True)
class Drift:
    """How far the distributions of next tokens are from the reference's: one value per position compared.

    `divergence` is KL(reference ‖ other) in nats. `shortfall` is by how many nats the reference prefers its own choice
    to the other's; 0 where both choose alike.
    """

    divergence: Array
    shortfall: Array


def drift(got: Array, want: Array, real: Array) -> Drift:
    """Compares logits [batch, n, vocab] at the positions where `real` [batch, n] is true."""
    divergences, shortfalls = [np.zeros(0)], [np.zeros(0)]
    for row, part in _chunks(got.shape):
        keep = real[row, part]
        if not keep.any():
            continue
        y, r = without_odd(got[row, part][keep], want[row, part][keep])
        divergences.append(_divergence(r, y))
        chosen = np.take_along_axis(r, y.argmax(-1)[:, None], -1)[:, 0]
        shortfalls.append((r.max(-1) - chosen).astype(np.float64))
    return Drift(np.concatenate(divergences), np.concatenate(shortfalls))


def without_odd(got: Array, want: Array) -> tuple[Array, Array]:
    """Both with 0 where they hold the same NaN or infinity: there they are equal."""
    odd = ~np.isfinite(want)
    if not odd.any():
        return got, want
    odd &= (got == want) | (np.isnan(got) & np.isnan(want))
    return np.where(odd, 0, got), np.where(odd, 0, want)


def _divergence(want: Array, got: Array) -> Array:
    """KL in nats per row; with p the reference's distribution, Σ p·(r - y) - log Z_r + log Z_y."""
    r, y = want - want.max(-1, keepdims=True), got - got.max(-1, keepdims=True)
    p = np.exp(r)
    total = p.sum(-1, dtype=np.float64)
    difference = np.einsum("ij,ij->i", p, r - y, dtype=np.float64) / total
    result: Array = difference - np.log(total) + np.log(np.exp(y).sum(-1, dtype=np.float64))
    return np.maximum(result, 0.0)


def _chunks(shape: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    """(row, positions) of [batch, n, vocab], in chunks of `CHUNK_VALUES`."""
    batch, count, vocabulary = shape
    step = max(1, CHUNK_VALUES // max(1, vocabulary))
    for row in range(batch):
        for start in range(0, count, step):
            yield row, slice(start, min(start + step, count))
