"""The points of the proof's grid: what is fed to the graph and to the author's model.

| group | batch | new tokens | past | mask |
|---|---|---|---|---|
| grid | 1, 2, 3 | 1, 2, 17, 64 | 0, 1, 11 | all ones; one new token behind nothing is how a past of 1 begins |
| padding | 3 | 17, then one by one | – | left, right, holes, all in one batch; a hole inside a past |
| wide | 33 | 2, then 1 | – | all ones |
| long | 1 | runs between `EDGES` and windows, and one by one over them, up to `FAR` | – | all ones |
| window | 1 | window + 16, then 1 | – | more padding than the window is wide |
| threshold | 1 | threshold + 5 | up to the threshold | all ones |
| text | 3 | 64, then one by one | – | all ones; real text where the artifact can tokenize; part of the grid |

Left out, and said so in the notes: several new tokens after a past for more than one row where the graph's attention
operator refuses it; masks that the padding contract excludes; windows and thresholds beyond `LONGEST` positions or
dearer than `DEAREST`; points longer than the context. Long points compare the last `LAST` positions of a run, not all
of them: their purpose is what lies at their end. What lies between `FAR` and the end of the context is the matter of
`ending`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from truecast.proof.operators import Array

BATCHES, NEWS, PASTS = (1, 2, 3), (1, 2, 17, 64), (0, 1, 11)
BEYOND = 5
"""Positions past a window or a threshold."""
LONGEST = 4096 + BEYOND
"""The longest point, in positions."""
DEAREST = 5e12
"""Most multiply-adds one long point may take in one model: about a minute on two cores."""
EDGES = (128, 300, 1000)
"""Positions that the long point crosses with small runs, beside the windows."""
ACROSS = (4, 1, 1)
"""New tokens of these runs; the first begins two positions before the edge."""
FAR = EDGES[-1] - 2 + sum(ACROSS)
"""Positions of the long point."""
LEAST_FAR = 136
"""Positions that it has in every model, however dear."""
WIDE = 33
"""Rows of the wide point: more than 8, 16 and 32."""
PADDED_WINDOW = 128
"""Stands in for the window where a model has none: its padding is longer than every other point's."""
LAST = 16
SEED = 20_240_717
"""Of the tokens; the trace saw zeros."""
ALL = 0
TEXT_ROWS, TEXT_NEW, TEXT_STEPS = 3, 64, 8


@dataclass(frozen=True)
class Point:
    """One sequence of runs over one cache.

    `tokens` and `mask` [batch, total] are what the author's model is given; the runs take `pieces` positions each, in
    order. Each compares its last `keep` positions (ALL: every one), the first `settling` ones only their last.
    `compact`: the next token of a row goes where its padding began, as the contract `right` has it, rather than behind.
    """

    name: str
    tokens: Array
    mask: Array
    pieces: tuple[int, ...]
    keep: int = ALL
    settling: int = 0
    text: bool = False
    compact: bool = False

    @property
    def batch(self) -> int:
        """Rows."""
        return len(self.tokens)

    def runs(self) -> Iterator[Run]:
        """The runs in order."""
        end = 0
        for index, new in enumerate(self.pieces):
            start, end = end, end + new
            yield Run(start, end, 1 if index < self.settling else self.keep)


@dataclass(frozen=True)
class Run:
    """Positions [start, end) of a point; `keep` of them are compared (ALL: every one)."""

    start: int
    end: int
    keep: int

    @property
    def kept(self) -> slice:
        """The positions compared, as a slice of the point's."""
        return slice(self.start if self.keep == ALL else max(self.start, self.end - self.keep), self.end)


@dataclass(frozen=True)
class Limits:
    """What decides which points there are.

    `padding` is the graph's contract. `many_after_past`: whether several rows may have several new tokens after a past.
    `context` is None when nothing limits the length. `weights` counts the model's, without embeddings. `heads` counts
    query heads, for the memory of the author's attention scores. A text is computed again behind `restart` positions.
    """

    padding: str
    many_after_past: bool
    vocabulary: int
    context: int | None
    windows: tuple[int, ...]
    thresholds: tuple[int, ...]
    weights: int
    heads: int
    texts: tuple[tuple[int, ...], ...] = ()
    restart: int | None = None


SCORES_BYTES = 1 << 30
"""Most bytes of one layer's attention scores in the author's code."""


def grid(limits: Limits) -> tuple[list[Point], list[str]]:
    """The points, short before long, and a note for everything left out."""
    makers = (_plain, _padded, _wide, _windows, _long, _thresholds, _text)
    notes: list[str] = []
    points = [point for make in makers for point in make(limits, notes)]
    context = limits.context
    fitting = [p for p in points if context is None or p.tokens.shape[1] <= context]
    if len(fitting) < len(points):
        notes.append(f"{len(points) - len(fitting)} points are longer than the context of {context} and were left out.")
    return fitting, notes


def _tokens(limits: Limits, batch: int, total: int) -> Array:
    numbers = np.random.default_rng(SEED + 1000 * batch + total)
    return numbers.integers(0, limits.vocabulary, (batch, total), dtype=np.int64)


def _ones(name: str, limits: Limits, batch: int, pieces: tuple[int, ...], keep: int = ALL, settling: int = 0) -> Point:
    total = sum(pieces)
    return Point(name, _tokens(limits, batch, total), np.ones((batch, total), np.int64), pieces, keep, settling)


def _plain(limits: Limits, notes: list[str]) -> Iterator[Point]:
    for past, batch, new in product(PASTS, BATCHES, NEWS):
        if batch > 1 and new > 1 and past and not limits.many_after_past:
            continue
        if past == 0 and new in PASTS:  # how the points behind that past begin
            continue
        if (past, batch, new) == (0, TEXT_ROWS, _sizes(limits.context, TEXT_NEW, TEXT_STEPS)[0]):  # how the text begins
            continue
        pieces = (past, new) if past else (new,)
        yield _ones(f"batch {batch}, new {new}, past {past}", limits, batch, pieces, settling=int(past > 0))
    if not limits.many_after_past:
        notes.append("Several new tokens after a past were proven for one row: the attention operator takes no more.")


def _padded(limits: Limits, notes: list[str]) -> Iterator[Point]:
    total, steps = _sizes(limits.context, PADDED_NEW, PADDED_STEPS)
    lengths = np.array([total, (total + 1) // 2, min(2, total)])
    ones = np.ones((3, total + steps), np.int64)
    tokens = _tokens(limits, 3, total + steps)
    column = np.arange(total + steps)
    right = ones.copy()
    right[:, :total] = column[:total] < lengths[:, None]
    pieces = (total, *(1,) * steps)
    yield Point("right padding", tokens, right, pieces, compact=limits.padding == "right")
    if limits.padding == "right":
        notes.append("Masks with padding in front or with holes are outside the padding contract and were not proven.")
        return
    left = (column >= total - lengths[:, None]).astype(np.int64)
    yield Point("left padding", tokens, left, pieces)
    if total < SHORTEST_HOLES:
        return
    holes = ones.copy()
    for row, places in enumerate(HOLES):
        holes[row, [place for place in places if place < total]] = 0
    yield Point("holes", tokens, holes, pieces)
    mixed = np.stack([left[1], right[1], holes[2]])
    yield Point("left, right and holes in one batch", tokens, mixed, pieces)
    inside = np.ones((1, sum(HOLE_INSIDE)), np.int64)
    inside[0, [0, 2, 8]] = 0
    yield Point("holes in a past, then 9 new", _tokens(limits, 1, inside.size), inside, HOLE_INSIDE)


HOLES = ((0, 3, 4, 9), (1, 2, 8, 15), (5, 6, 7, 12))
"""Places without a token in each of three rows."""
HOLE_INSIDE = (11, 9)
SHORTEST_HOLES = 8
"""Fewest positions in which every row with holes has a token left."""
PADDED_NEW, PADDED_STEPS = 17, 3


def _sizes(context: int | None, new: int, steps: int) -> tuple[int, int]:
    """Tokens of a point's first run, and single ones behind it; fewer where the context is short."""
    if context is None or context >= new + steps:
        return new, steps
    steps = min(steps, context - 1)
    return context - steps, steps


def _wide(limits: Limits, notes: list[str]) -> Iterator[Point]:
    yield _ones(f"batch {WIDE}", limits, WIDE, (2, 1), 1)


def _affordable(limits: Limits, total: int, what: str, notes: list[str]) -> bool:
    cost, scores = 2.0 * total * limits.weights, 4.0 * limits.heads * total * total
    if total <= LONGEST and cost <= DEAREST and scores <= SCORES_BYTES:
        return True
    notes.append(f"{what} was not crossed: {total} positions are too many for this proof.")
    return False


def _windows(limits: Limits, notes: list[str]) -> Iterator[Point]:
    """Padding longer than a window, and the windows that the long point does not reach."""
    end = far(limits)
    for window in limits.windows or (PADDED_WINDOW,):
        name, total = f"window {window}", window + LAST
        if not _affordable(limits, total, f"The attention window of {window}", notes):
            continue
        pieces: tuple[int, ...] = (total, 1, 1)
        mask = np.ones((1, sum(pieces)), np.int64)
        mask[:, slice(0, window + 2) if limits.padding == "any" else slice(total - window - 2, total)] = 0
        tokens, compact = _tokens(limits, *mask.shape), limits.padding == "right"
        # What a compact row has in its first run does not lie among the last positions.
        yield Point(f"padding of {window + 2}", tokens, mask, pieces, LAST, settling=int(compact), compact=compact)
        if window + BEYOND > end:
            pieces = _over((window,), window + BEYOND)
            yield _ones(f"{name} crossed by several, then one by one", limits, 1, pieces, LAST)


def far(limits: Limits) -> int:
    """Positions of the long point: `FAR`, or what the context and the model's size allow."""
    dear = max(LEAST_FAR, int(DEAREST / (2.0 * max(1, limits.weights))))
    return min(FAR, dear, FAR if limits.context is None else limits.context)


def _long(limits: Limits, notes: list[str]) -> Iterator[Point]:
    end = far(limits)
    if end < FAR and end != limits.context:
        notes.append(f"No point is longer than {end} positions: the model is too large for this proof to go on.")
    yield _ones(f"{end} positions", limits, 1, _over((*EDGES, *limits.windows), end), LAST)


def _over(edges: Iterable[int], total: int) -> tuple[int, ...]:
    """Runs over `total` positions: up to two before each edge, then `ACROSS` it; the last two positions one by one."""
    pieces: list[int] = []
    for edge in sorted(set(edges)):
        start, whole = edge - 2 - sum(pieces), edge - 2 + sum(ACROSS) <= total
        if whole and start >= 0:
            pieces += [*([start] if start else []), *ACROSS]
    left = total - sum(pieces)
    return (*pieces, *([left - 2] if left > 2 else []), *(1,) * min(left, 2))


def _thresholds(limits: Limits, notes: list[str]) -> Iterator[Point]:
    for threshold in limits.thresholds:
        total, name = threshold + BEYOND, f"rotary threshold {threshold}"
        if not _affordable(limits, total, f"The rotary threshold at {threshold}", notes):
            continue
        yield _ones(f"{name} + {BEYOND} at once", limits, 1, (total,), LAST)
        yield _ones(f"{name} crossed token by token", limits, 1, (threshold - 2, *(1,) * (BEYOND + 2)), LAST)


def _text(limits: Limits, notes: list[str]) -> Iterator[Point]:
    new, steps = _sizes(limits.context, TEXT_NEW, TEXT_STEPS)
    total = new + steps
    tokens = _tokens(limits, TEXT_ROWS, total)
    if limits.texts and min(map(len, limits.texts)) >= total:
        tokens = np.array([text[:total] for text in limits.texts], np.int64)
    else:
        notes.append("No real text could be tokenized; random tokens stand in for it.")
    pieces = (new, *(1,) * steps)
    yield Point("text", tokens, np.ones_like(tokens), pieces, ALL, text=True)


def config_windows(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The attention window that the configuration states, whether or not the model uses it."""
    stated = config.get("sliding_window")
    return (stated,) if isinstance(stated, int) and not isinstance(stated, bool) and stated > 1 else ()


def stretches(config: Mapping[str, Any]) -> bool:
    """Whether positions beyond `max_position_embeddings` are meant to be used: a dynamic rotary embedding."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    entries = [rope, *(v for v in rope.values() if isinstance(v, Mapping))]
    return any(entry.get("rope_type", entry.get("type")) == "dynamic" for entry in entries)


def config_thresholds(config: Mapping[str, Any], kinds: Collection[str] = ("dynamic", "longrope")) -> tuple[int, ...]:
    """Lengths at which a rotary embedding changes its frequencies (dynamic and longrope; those of others are fixed)."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    entries = [rope, *(v for v in rope.values() if isinstance(v, Mapping))]
    found = set()
    for entry in entries:
        kind = entry.get("rope_type", entry.get("type"))
        if kind == "dynamic" and kind in kinds:
            found.add(config.get("max_position_embeddings"))
        if kind == "longrope" and kind in kinds:
            found |= {entry.get("original_max_position_embeddings"), config.get("original_max_position_embeddings")}
    return tuple(sorted(length for length in found if isinstance(length, int) and length > 2))
