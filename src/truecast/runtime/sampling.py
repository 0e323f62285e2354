"""Choosing the next token of every row of a batch: greedy, temperature, top-k, top-p; reproducible by seed.

A vocabulary has some 150 000 entries and a step takes some 12 ms, so nothing here sorts the vocabulary: the largest
entries and the place of a draw are found through blocks, and top-p is drawn without knowing the whole nucleus. Rows are
treated one by one: NumPy is no faster on all of them at once (its argmax is three times slower).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from truecast.errors import InputError, TruecastError

BLOCK = 128
"""Entries per block of a search; blocks and entries of some blocks are then both few for 150 000 entries."""

SMALLEST_TEMPERATURE = 1e-6
"""Below it every choice is the likeliest token; the scaled logits stay finite in float32 down to here."""

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    `temperature` 0 takes the likeliest token and ignores the rest. `top_k` 0 and `top_p` 1 switch those filters off;
    they apply in the order of transformers: temperature, top-k, then top-p within what top-k left. With a `seed` the
    choices repeat; those of a row depend on its number but not on the other rows.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Raises InputError on a value outside its range."""
        for name, value, ok, rule in (
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (off) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            ("seed", self.seed, self.seed is None or self.seed >= 0, "0 or more"),
        ):
            if not ok:
                raise InputError(f"{name} is {value}; it must be {rule}.")


class Sampler:
    """Draws one token per row and step; holds the random state of every row.

    `first` is the number of the first row: each row has a state of its own, by its number.
    """

    def __init__(self, sampling: Sampling, rows: int, first: int = 0) -> None:
        self.sampling = sampling
        seeds = np.random.SeedSequence(sampling.seed).spawn(first + rows)[first:]
        self._random = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]

    def choose(self, logits: Floats) -> list[int]:
        """The next token of every row of logits float32 [rows, vocab]; raises TruecastError on NaN or infinity."""
        rows = zip(logits, self._random, strict=True)
        return [choose_token(row, self.sampling, random) for row, random in rows]


def choose_token(logits: Floats, sampling: Sampling, random: np.random.Generator) -> int:
    """One token id from logits [vocab]; the first of equals when greedy."""
    best = int(logits.argmax())
    peak = float(logits[best])
    if not isfinite(peak):  # argmax finds a NaN wherever it is
        raise TruecastError(
            "The graph returned logits that are not finite numbers; check the artifact with `truecast verify`."
        )
    if sampling.temperature == 0 or sampling.top_k == 1:
        return best
    if 0 < sampling.top_k < len(logits):
        ids = largest(logits, sampling.top_k)
        weights = _exponentials(logits[ids], peak, sampling.temperature)
        return int(ids[_place(_nucleus(weights, sampling.top_p), random.random())])
    weights = _exponentials(logits, peak, sampling.temperature)
    return _draw_nucleus(weights, sampling.top_p, random) if sampling.top_p < 1 else _place(weights, random.random())


def largest(values: Floats, count: int) -> Ids:
    """Indices of the `count` largest of `values` [n] in falling order of value.

    The largest `count` entries lie in the `count` blocks with the largest maxima, and in the rest behind the blocks.
    """
    whole = len(values) // BLOCK
    if count >= whole:
        near = np.arange(len(values))
    else:
        maxima = values[: whole * BLOCK].reshape(whole, BLOCK).max(axis=1)
        blocks = np.sort(np.argpartition(maxima, whole - count)[whole - count :])
        inside = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
        near = np.concatenate([inside, np.arange(whole * BLOCK, len(values))])
    chosen = near[np.argpartition(values[near], len(near) - count)[len(near) - count :]]
    return chosen[np.lexsort((chosen, -values[chosen]))]


def _exponentials(values: Floats, peak: float, temperature: float) -> Floats:
    """exp((values - peak) / temperature): at most 1, so that no temperature overflows."""
    scaled: Floats = values - np.float32(peak)
    scaled *= np.float32(1 / max(temperature, SMALLEST_TEMPERATURE))
    np.exp(scaled, out=scaled)
    return scaled


def _nucleus(weights: Floats, top_p: float) -> Floats:
    """The head of weights sorted falling, up to the first whose running sum reaches `top_p` of the whole."""
    running = weights.cumsum(dtype=np.float64)
    return weights[: 1 + int(np.count_nonzero(running[:-1] < top_p * running[-1]))]


def _draw_nucleus(weights: Floats, top_p: float, random: np.random.Generator) -> int:
    """An index drawn from the nucleus of unsorted `weights` [n].

    A draw from everything is kept if the weights ranked before it sum to less than top_p of the whole. If not, neither
    it nor anything behind it is in the nucleus: those are struck out and another is drawn. The expected number of draws
    is below 1 / top_p, and logarithmic where top_p is small.
    """
    wanted = top_p * float(weights.sum())
    while True:
        pick = _place(weights, random.random())
        before = weights > weights[pick]
        before[:pick] |= weights[:pick] == weights[pick]
        ahead = weights * before
        if float(ahead.sum()) < wanted:
            return pick
        weights = ahead


def _place(weights: Floats, draw: float) -> int:
    """The index at which the running sum of `weights` [n] passes `draw` (in [0, 1)) of the whole."""
    sums = np.add.reduceat(weights, np.arange(0, len(weights), BLOCK), dtype=np.float64)
    running = sums.cumsum()
    target = draw * running[-1]
    block = _first_above(running, target)
    inside = weights[block * BLOCK : (block + 1) * BLOCK].cumsum(dtype=np.float64)
    return block * BLOCK + _first_above(inside, target - (running[block] - sums[block]))


def _first_above(running: NDArray[np.float64], target: float) -> int:
    """The first index whose running sum is above `target`; the last step of the sum where rounding leaves none."""
    index = int(running.searchsorted(target, side="right"))
    return index if index < len(running) else int(running.searchsorted(running[-1]))
