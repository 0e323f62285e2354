"""Cosines of outputs with the reference's, gathered over the grid.

Every vector of the last axis gives one. A vector of few numbers (the score of a reranker, the logits of a few classes)
has no direction to speak of: where the author's own numbers are all near zero, any noise turns it. All of those
together are one vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from truecast.proof.operators import Array

FEW = 16
"""Numbers below which a vector counts as few: labels of classifiers, where embeddings have hundreds."""


@dataclass
class Cosines:
    """Cosines so far, and `count` vectors of few numbers with their sums: Σy·r, Σy², Σr²."""

    parts: list[Array] = field(default_factory=list)
    count: int = 0
    singles: Array = field(default_factory=lambda: np.zeros(3))

    def add(self, got: Array, want: Array) -> None:
        """Takes an output of one point; rows in which the reference is not finite are left out."""
        wide = max(1, want.shape[-1]) if want.ndim else 1
        y, r = (array.astype(np.float64).reshape(-1, wide) for array in (got, want))
        keep = np.isfinite(r).all(1)
        y, r = y[keep], r[keep]
        sums = np.stack([(y * r).sum(1), (y * y).sum(1), (r * r).sum(1)])
        if wide < FEW:
            self.count += len(y)
            self.singles = self.singles + sums.sum(1)
        else:
            self.parts.append(_cosine(*sums))

    def values(self) -> Array:
        """All of them, float64, flat."""
        single = [_cosine(*self.singles[:, None])] if self.count else []
        return np.concatenate([*self.parts, *single]) if self.parts or single else np.zeros(0)


def _cosine(product: Array, left: Array, right: Array) -> Array:
    """Σy·r / √(Σy²·Σr²); of two zero vectors it is 1."""
    lengths = np.sqrt(left * right)
    result: Array = np.where(lengths > 0, product / np.where(lengths > 0, lengths, 1), (left == right) * 1.0)
    return result
