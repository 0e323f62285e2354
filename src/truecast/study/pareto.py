"""Which variants nothing else beats: points of cost and score, and the front of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from truecast.study.results import Row, geometric_mean


@dataclass(frozen=True)
class Point:
    """A variant: `cost` in milliseconds per row (geometric mean over all cells), and its score (higher: better)."""

    name: str
    cost: float
    score: float


def points(rows: Sequence[Row]) -> list[Point]:
    """The points of all rows that have both."""
    found = ((row.variant.name, cost(row), score(row)) for row in rows)
    return [Point(name, price, value) for name, price, value in found if price is not None and value is not None]


def cost(row: Row) -> float | None:
    """Median milliseconds per row, the geometric mean over the cells."""
    return geometric_mean([cell.p50_per_sample for cell in row.cells]) if row.cells else None


def score(row: Row) -> float | None:
    """The mean over the heads of accuracy (or rank correlation); without labels the mean cosine to float32."""
    heads = [head.accuracy if head.accuracy is not None else head.spearman for head in row.heads]
    known = [one for one in heads or [likeness.cosine for likeness in row.likenesses] if one is not None]
    return sum(known) / len(known) if known and row.measured else None


def front(found: Sequence[Point]) -> list[Point]:
    """The points that no other beats (at most the cost and at least the score, one of them better), cheapest first."""
    kept = [one for one in found if not any(_beats(other, one) for other in found)]
    return sorted(kept, key=lambda point: (point.cost, point.name))


def _beats(one: Point, other: Point) -> bool:
    no_worse = one.cost <= other.cost and one.score >= other.score
    return no_worse and (one.cost < other.cost or one.score > other.score)
