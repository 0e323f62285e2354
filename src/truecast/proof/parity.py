"""Tier 2: the same numbers as the author's model, at every point of the grid.

| subject | compared with | rule |
|---|---|---|
| fp32, as shipped | the author's model, the checkpoint's weights | tight |
| int8 or int4, exact products | the author's model, the artifact's own decoded weights | tight |
| int8 or int4, as shipped | the same | price of the activations: KL, top-1 |
| fp16, as shipped | the author's model, the artifact's own rounded weights | half |
| every quantized one, as shipped | the author's model, the checkpoint's weights | price of the format: reported |

Tight: max|y - r| ≤ max(8·|r32 - r64|, 1e-4·max|r|); r64, the author's model in float64, is only run where the second
term does not suffice. Padded positions are left out of every comparison, but not of the search for NaN and infinity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from truecast.artifact import Check
from truecast.proof.measures import drift, largest_gap
from truecast.proof.operators import Array
from truecast.proof.points import Point
from truecast.proof.reference import Reference
from truecast.proof.sessions import RUN_ERRORS
from truecast.proof.tally import Worst, broken, check
from truecast.runtime.decoder import Decoder, positions

TIER = "parity"
RELATIVE = 1e-4
"""Tight limit in parts of the largest logit: a hundred times what float32 sums of this length leave (about 1e-6)."""
NOISE_FACTOR = 8.0
"""Tight limit in units of the reference's own rounding noise, where the model amplifies noise."""
HALF_EPSILON = 2.0**-11
"""Largest relative error of one rounding to float16."""
HALF_ROUNDINGS = 8.0
"""Roundings of float16 on the way through one layer that add up in the residual stream (norm, products, residuals)."""
SPARE = 3
"""Capacity of the caches beyond what a point needs, so that length and capacity are never taken for one another."""

ACTIVATION_KL, ACTIVATION_TOP1 = 2e-2, 0.90
"""Price of int8 activations: mean KL in nats and share of positions with the same choice. 2e-2 is the low end of what
published 4-bit formats cost (llama.cpp's perplexity tool: mean KL of 0.02 to 0.05), so that the activations never cost
more than the weights; at that KL about one choice in twenty changes in a real model, of which the gate leaves room for
two."""
TIE_NATS = 2 * (2 * ACTIVATION_KL) ** 0.5
"""A choice that the reference likes less than its own by no more than this is a tie: KL ≈ σ²/2 of the logits' error, so
this is two standard deviations of the error which the KL limit admits. Random weights give many such ties."""
FORMAT_KL = 1.0
"""Price of the format, gated only against catastrophe: ten times the dearest published low-bit format (mean KL 0.1)."""
HALF_KL, HALF_TOP1 = 1e-4, 0.995
"""Price of float16: what half-precision conversions are commonly held to."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Accuracy:
    """What tier 2 measured and later tiers need: the largest absolute error of a logit, and the worst points by name."""

    error: float
    failed: tuple[str, ...]


@dataclass
class Subject:
    """One way of running the graph, and what has been measured of it.

    `tight` subjects follow the tight rule, others have `limit` in parts of the largest logit (None: not gated).
    """

    name: str
    decoder: Decoder
    tight: bool
    limit: float | None = None
    priced: bool = False
    worst: Worst = field(default_factory=Worst)
    error: float = 0.0
    broken: list[tuple[str, str]] = field(default_factory=list)
    infinite: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    point_divergence: Worst = field(default_factory=Worst)
    divergence: list[Array] = field(default_factory=list)
    shortfall: list[Array] = field(default_factory=list)


def reference_logits(reference: Reference, point: Point) -> Iterator[Array]:
    """The author's logits at the positions each run compares, from a fresh state."""
    reference.reset()
    cache = reference.new_cache()
    for run in point.runs():
        mask = point.mask[:, : run.end]
        where = positions(mask, run.end - run.start)
        yield reference.step(cache, point.tokens[:, run.start : run.end], mask, where, run.keep)


def graph_logits(decoder: Decoder, point: Point) -> Iterator[Array]:
    """The graph's logits at the same positions, through the runtime."""
    cache = decoder.new_cache(point.batch, point.tokens.shape[1] + SPARE)
    for run in point.runs():
        mask = point.mask[:, : run.end]
        where = positions(mask, run.end - run.start)
        ids = point.tokens[:, run.start : run.end]
        given = compact(mask) if decoder.info.padding == "right" else mask
        yield decoder.step(cache, ids, given, keep=run.keep, position_ids=where)


def compact(mask: Array) -> Array:
    """The mask of the padding contract `right`: as many ones as before, in front."""
    return (np.arange(mask.shape[1]) < mask.sum(1, keepdims=True)).astype(np.int64)


def real_positions(point: Point) -> list[Array]:
    """For each run, which of the positions it compares hold tokens rather than padding: bool [batch, n]."""
    return [point.mask[:, run.kept] == 1 for run in point.runs()]


def compare_all(
    reference: Reference,
    subjects: Sequence[Subject],
    points: Sequence[Point],
    progress: Progress | None = None,
) -> None:
    """Runs every subject at every point and takes the results into the subjects."""
    for index, point in enumerate(points):
        wanted = list(reference_logits(reference, point))
        for subject in subjects:
            _compare(reference, subject, point, wanted)
        if progress:
            progress(index + 1, len(points))


def _compare(reference: Reference, subject: Subject, point: Point, wanted: Sequence[Array]) -> None:
    divergences = [np.zeros(0)]
    shortfalls = [np.zeros(0)]
    runs = iter(graph_logits(subject.decoder, point))
    for number, (want, real) in enumerate(zip(wanted, real_positions(point), strict=True)):
        try:
            got = next(runs)
        except RUN_ERRORS as error:
            subject.broken.append((point.name, _first_line(error)))
            subject.failed.append(point.name)
            return
        if got.shape != want.shape:
            subject.broken.append((point.name, f"logits of shape {got.shape} instead of {want.shape}"))
            subject.failed.append(point.name)
            return
        _take_gap(reference, subject, point, number, got, want, real)
        if subject.priced:
            found = drift(got, want, real)
            divergences.append(found.divergence)
            shortfalls.append(found.shortfall)
    if subject.priced:
        _take_drift(subject, point, np.concatenate(divergences), np.concatenate(shortfalls))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _take_gap(
    reference: Reference, subject: Subject, point: Point, number: int, got: Array, want: Array, real: Array
) -> None:
    gap = largest_gap(got, want, real)
    where = f"{point.name}, run {number + 1} of {len(point.pieces)}, row {gap.at[0]}, position {gap.at[1]}"
    if not gap.finite:
        subject.infinite.append(where)
        subject.failed.append(point.name)
    scale = gap.scale or 1.0
    limit = subject.limit if subject.limit is not None else RELATIVE
    if subject.tight and not gap.error <= RELATIVE * scale and gap.finite:
        limit = max(RELATIVE, NOISE_FACTOR * _noise(reference, point, number, want, real) / scale)
    subject.error = max(subject.error, gap.error)
    subject.worst.add(gap.error / scale, limit, where)
    if (subject.tight or subject.limit is not None) and not gap.error / scale <= limit:
        subject.failed.append(point.name)


def _noise(reference: Reference, point: Point, number: int, want: Array, real: Array) -> float:
    """|r32 - r64| of one run: what float32 itself leaves in the author's code."""
    with reference.in_float64():
        runs = list(reference_logits(reference, point))
    return largest_gap(want, runs[number], real).error


def _take_drift(subject: Subject, point: Point, divergence: Array, shortfall: Array) -> None:
    if len(divergence):
        subject.point_divergence.add(float(divergence.mean()), POINT_KL, point.name)
    if point.text:
        subject.divergence.append(divergence)
        subject.shortfall.append(shortfall)


POINT_KL = 10 * ACTIVATION_KL
"""Mean KL of a single point, some of which have one position only and all of which but one have random tokens."""


def parity_checks(subject: Subject, against: str) -> list[Check]:
    """What was measured of one subject, as checks."""
    checks = []
    name = f"{subject.name} against {against}"
    if subject.broken:
        point, reason = subject.broken[0]
        count = len(subject.broken)
        checks.append(broken(TIER, f"{subject.name} runs", f"{count} points do not run, first {point}: {reason}"))
    if subject.infinite:
        detail = f"NaN or infinity at {len(subject.infinite)} runs, first {subject.infinite[0]}"
        checks.append(broken(TIER, f"{subject.name} is finite", detail))
    if subject.worst.count and (subject.tight or subject.limit is not None):
        worst = subject.worst
        detail = f"worst at {worst.where}; {worst.count} runs compared"
        checks.append(check(TIER, name, worst.value, worst.limit, "of the largest logit", detail))
    return checks


def price_checks(
    subject: Subject, what: str, divergence: Sequence[Array], shortfall: Sequence[Array], kl: float, top1: float | None
) -> list[Check]:
    """Mean KL and share of equal choices over the text points; `top1` None reports without a gate."""
    nats = np.concatenate([np.zeros(0), *divergence])
    lost = np.concatenate([np.zeros(0), *shortfall])
    if not len(nats):
        return [broken(TIER, what, "nothing could be measured")]
    agreed, exact = float((lost <= TIE_NATS).mean()), float((lost == 0).mean())
    detail = f"{len(nats)} positions, 99th percentile {np.quantile(nats, 0.99):.2e}"
    checks = [check(TIER, f"{what}, mean KL", float(nats.mean()), kl, "nats", detail)]
    if top1 is not None:
        detail = f"{exact:.1%} the very same; nearer than {TIE_NATS:.1f} nats counts as a tie"
        checks.append(check(TIER, f"{what}, same choice", agreed, top1, "of positions", detail, at_least=True))
    return checks
