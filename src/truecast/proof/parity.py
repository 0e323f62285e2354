"""Tier 2: the same numbers as the author's model, at every point of the grid.

| subject | compared with | rule |
|---|---|---|
| fp32, as shipped | the author's model, the checkpoint's weights | tight |
| int8 or int4, exact products | the author's model, the artifact's own decoded weights | tight |
| int8 or int4, as shipped | the same | price of the activations: KL, top-1 |
| fp16, as shipped | the author's model, the artifact's own rounded weights | half |
| quantized cache, with a float one in its place | as without it | as without it |
| quantized cache, exact products | the author's model, the artifact's own weights | price of the cache: KL, top-1 |
| every quantized one, as shipped | the author's model, the checkpoint's weights | price of the format: reported |

Tight: max|y - r| ≤ max(8·|r32 - r64|, 1e-4·max|r|); r64, the author's model in float64, is only run where the second
term does not suffice. Padded positions are left out of every comparison, but not of the search for NaN and infinity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from truecast.artifact import Check
from truecast.proof.feeds import given_mask
from truecast.proof.measures import Drift, drift, largest_gap
from truecast.proof.operators import Array
from truecast.proof.points import Point
from truecast.proof.reference import Reference
from truecast.proof.sessions import RUN_ERRORS
from truecast.proof.tally import Worst, broken, check, reason
from truecast.runtime.decoder import Decoder, positions

TIER = "parity"
RELATIVE = 1e-4
"""Tight limit in parts of the largest logit: a hundred times what float32 sums of this length leave (about 1e-6)."""
NOISE_FACTOR = 8.0
"""Tight limit in units of the reference's own rounding noise, where the model amplifies noise."""
HALF_EPSILON = 2.0**-11
"""Largest relative error of one rounding to float16."""
HALF_ROUNDINGS = 16.0
"""About as many values one layer rounds to float16 on the way (norms, products, rotation, scores, residuals); errors of
n layers add up like a random walk."""
SPARE = 3
"""Capacity of the caches beyond what a point needs, so that length and capacity are never taken for one another."""

ACTIVATION_KL, ACTIVATION_TOP1 = 2e-2, 0.90
"""Price of int8 activations: mean KL in nats and share of positions with the same choice. 2e-2 is the low end of what
published 4-bit formats cost (llama.cpp's perplexity tool: mean KL of 0.02 to 0.05), so that the activations never cost
more than the weights; at that KL about one choice in twenty changes in a real model, of which the gate leaves room for
two."""
GRID_KL = 10 * ACTIVATION_KL
"""Mean KL over all points, nearly all of random tokens: they are far from what a model has learned, and its logits move
ten times as much as on text (0.03 against 0.0024 in Gemma 3 270M)."""
POINT_KL = 1.0
"""Mean KL of a single point. Random tokens are one sequence to a point and sequences differ a hundredfold (0.009 to
0.21 in Gemma 3 270M, whose weights were exact); a kernel that is wrong for one shape leaves logits that have nothing to
do with the reference's, which are nats apart."""
CACHE_KL: Mapping[int, float] = MappingProxyType({8: 1e-2, 4: 1.0})
CACHE_TOP1: Mapping[int, float | None] = MappingProxyType({8: 0.95, 4: None})
"""Price of a quantized cache, by bits. 8 bits must cost less than int8 activations do: half their KL, half the choices
(2e-3 in Gemma 3 270M, whose one key head of 256 channels per layer is hard to round). 4 bits with static scales are
lossy by nature (0.2 there): gated, like a format, against catastrophe only, and shown."""
FORMAT_KL = 1.0
"""Price of the format, gated only against catastrophe: ten times the dearest published low-bit format (mean KL 0.1)."""
HALF_KL, HALF_TOP1 = 1e-4, 0.995
"""Price of float16: what half-precision conversions are commonly held to."""

Progress = Callable[[int, int], None]
NOTHING: Mapping[str, Sequence[Array]] = MappingProxyType({})


@dataclass
class Subject:
    """One way of running the graph, and what has been measured of it.

    `tight` subjects follow the tight rule, others have `limit` in parts of the largest logit (None: not gated).
    `failed` are the points that failed, each with its first run that did.
    """

    name: str
    decoder: Decoder
    tight: bool
    limit: float | None = None
    priced: bool = False
    worst: Worst = field(default_factory=Worst)
    error: float = 0.0
    grid_kl: float = GRID_KL
    point_kl: float = POINT_KL
    broken: list[tuple[str, str]] = field(default_factory=list)
    infinite: list[str] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)
    point_divergence: Worst = field(default_factory=Worst)
    divergence: list[Array] = field(default_factory=list)
    price: list[Drift] = field(default_factory=list)
    format_price: list[Drift] = field(default_factory=list)


def reference_logits(reference: Reference, point: Point) -> Iterator[Array]:
    """The author's logits at the positions each run compares, from a fresh state.

    The author's cache has no place to overwrite: a compact point is run with its padding in front, where it leaves the
    distances between tokens (and so windows) as they are, and the logits of the first run are moved back.
    """
    reference.reset()
    cache = reference.new_cache()
    first = point.pieces[0]
    shift = first - point.mask[:, :first].sum(1) if point.compact else np.zeros(point.batch, np.int64)
    tokens, masks = (_moved(array, shift, first) for array in (point.tokens, point.mask))
    for number, run in enumerate(point.runs()):
        mask = masks[:, : run.end]
        where = positions(mask, run.end - run.start)
        logits = reference.step(cache, tokens[:, run.start : run.end], mask, where, run.keep)
        yield logits if number else _moved(logits, -shift, logits.shape[1])


def _moved(array: Array, shift: Array, length: int) -> Array:
    """`array` [batch, positions, …] with the first `length` positions of each row turned by its shift."""
    if not shift.any():
        return array
    moved = array.copy()
    for row, by in enumerate(shift.tolist()):
        moved[row, :length] = np.roll(array[row, :length], by, axis=0)
    return moved


def graph_logits(decoder: Decoder, point: Point) -> Iterator[Array]:
    """The graph's logits at the same positions, through the runtime."""
    cache = decoder.new_cache(point.batch, point.tokens.shape[1] + SPARE)
    for run in point.runs():
        mask = point.mask[:, : run.end]
        where = positions(mask, run.end - run.start)
        ids = point.tokens[:, run.start : run.end]
        yield decoder.step(cache, ids, given_mask(decoder.info.padding, mask), keep=run.keep, position_ids=where)


def real_positions(point: Point) -> list[Array]:
    """For each run, which of the positions it compares hold tokens rather than padding: bool [batch, n]."""
    return [point.mask[:, run.kept] == 1 for run in point.runs()]


def compare_all(
    reference: Reference,
    subjects: Sequence[Subject],
    points: Sequence[Point],
    originals: Mapping[str, Sequence[Array]] = NOTHING,
    progress: Progress | None = None,
    known: Mapping[str, Sequence[Array]] = NOTHING,
) -> None:
    """Runs every subject at every point and takes the results into the subjects.

    `originals` holds, by a point's name, the logits of the original weights, for the price of the format; `known` those
    of the reference where they were computed already.
    """
    for index, point in enumerate(points):
        wanted = known[point.name] if point.name in known else list(reference_logits(reference, point))
        for decoder in {id(subject.decoder): subject.decoder for subject in subjects}.values():
            group = [subject for subject in subjects if subject.decoder is decoder]
            _compare(reference, decoder, group, point, wanted, originals.get(point.name))
        if progress:
            progress(index + 1, len(points))


def _compare(
    reference: Reference,
    decoder: Decoder,
    subjects: Sequence[Subject],
    point: Point,
    wanted: Sequence[Array],
    originals: Sequence[Array] | None,
) -> None:
    """Runs one point once for all subjects of a decoder."""
    drifts: list[Drift] = []
    runs = iter(graph_logits(decoder, point))
    for number, (want, real) in enumerate(zip(wanted, real_positions(point), strict=True)):
        try:
            got = next(runs)
        except RUN_ERRORS as error:
            return _take_failure(subjects, point, number, reason(error))
        if got.shape != want.shape:
            said = f"logits of shape {got.shape} instead of {want.shape}"
            return _take_failure(subjects, point, number, said)
        for subject in subjects:
            _take_gap(reference, subject, point, number, got, want, real)
        if any(subject.priced for subject in subjects):
            drifts.append(drift(got, want, real))
        for subject in subjects:
            if subject.priced and originals is not None:
                subject.format_price.append(drift(got, originals[number], real))
    for subject in subjects:
        if subject.priced:
            _take_drift(subject, point, drifts)
    return None


def _take_failure(subjects: Sequence[Subject], point: Point, number: int, said: str) -> None:
    for subject in subjects:
        subject.broken.append((point.name, said))
        subject.failed.setdefault(point.name, number)


def _take_gap(
    reference: Reference, subject: Subject, point: Point, number: int, got: Array, want: Array, real: Array
) -> None:
    gap = largest_gap(got, want, real)
    where = f"{point.name}, run {number + 1} of {len(point.pieces)}, row {gap.at[0]}, position {gap.at[1]}"
    if not gap.finite:
        subject.infinite.append(where)
        subject.failed.setdefault(point.name, number)
    scale = gap.scale or 1.0
    limit = subject.limit if subject.limit is not None else RELATIVE
    if subject.tight and not gap.error <= RELATIVE * scale and gap.finite:
        limit = max(RELATIVE, NOISE_FACTOR * _noise(reference, point, number, want, real) / scale)
    subject.error = max(subject.error, gap.error)
    subject.worst.add(gap.error / scale, limit, where)
    if (subject.tight or subject.limit is not None) and not gap.error / scale <= limit:
        subject.failed.setdefault(point.name, number)


def _noise(reference: Reference, point: Point, number: int, want: Array, real: Array) -> float:
    """|r32 - r64| of one run: what float32 itself leaves in the author's code."""
    with reference.in_float64():
        runs = list(reference_logits(reference, point))
    return largest_gap(want, runs[number], real).error


def _take_drift(subject: Subject, point: Point, drifts: Sequence[Drift]) -> None:
    divergence = np.concatenate([d.divergence for d in drifts])
    if len(divergence):
        subject.point_divergence.add(float(divergence.mean()), subject.point_kl, point.name)
        subject.divergence.append(divergence)
    if point.text:
        subject.price.extend(drifts)


def parity_checks(subject: Subject, against: str) -> list[Check]:
    """What was measured of one subject, as checks."""
    checks = []
    name = f"{subject.name} against {against}"
    if subject.broken:
        point, said = subject.broken[0]
        count = len(subject.broken)
        checks.append(broken(TIER, f"{subject.name} runs", f"{count} points do not run, first {point}: {said}"))
    if subject.infinite:
        detail = f"NaN or infinity at {len(subject.infinite)} runs, first {subject.infinite[0]}"
        checks.append(broken(TIER, f"{subject.name} is finite", detail))
    if subject.worst.count and (subject.tight or subject.limit is not None):
        worst = subject.worst
        detail = f"worst at {worst.where}; {worst.count} runs compared"
        checks.append(check(TIER, name, worst.value, worst.limit, "of the largest logit", detail))
    if subject.priced and subject.point_divergence.count and not subject.tight:
        worst = subject.point_divergence
        detail = f"worst at {worst.where}"
        mean = float(np.concatenate(subject.divergence).mean())
        said = f"{worst.count} points"
        checks.append(check(TIER, f"{name}, mean KL of the grid", mean, subject.grid_kl, "nats", said))
        checks.append(check(TIER, f"{name}, mean KL of one point", worst.value, worst.limit, "nats", detail))
    return checks


def half_limit(layers: int, epsilon: float = HALF_EPSILON) -> float:
    """The limit for arithmetic in 16 bits, in parts of the largest logit; `epsilon` is the error of one rounding."""
    return float(epsilon * HALF_ROUNDINGS * (layers + 1) ** 0.5)


def price_checks(what: str, drifts: Sequence[Drift], kl: float, top1: float | None) -> list[Check]:
    """Mean KL and share of equal choices over the text points; without `top1` the second is not gated."""
    nats = np.concatenate([np.zeros(0), *(d.divergence for d in drifts)])
    lost = np.concatenate([np.zeros(0), *(d.shortfall for d in drifts)])
    if not len(nats):
        return [broken(TIER, f"{what}, mean KL", "nothing could be measured")]
    tie = tie_nats(kl)
    same, near = float((lost == 0).mean()), float((lost <= tie).mean())
    detail = f"{len(nats)} positions, 99th percentile {np.quantile(nats, 0.99):.2e}"
    said = f"the next token changes in {1 - same:.1%} of positions"
    if top1 is None:
        return [check(TIER, f"{what}, mean KL", float(nats.mean()), kl, "nats", f"{detail}; {said}")]
    said = f"{len(nats)} positions; {said}, in {1 - near:.1%} by more than a tie ({tie:.2g} nats)"
    return [
        check(TIER, f"{what}, mean KL", float(nats.mean()), kl, "nats", detail),
        check(TIER, f"{what}, same choice", near, top1, "of positions", said, at_least=True),
    ]


def tie_nats(kl: float) -> float:
    """A choice that the reference likes less than its own by no more than this many nats is a tie.

    KL ≈ σ²/2 for an error of standard deviation σ in the logits, so this is two standard deviations of the error that
    the limit on KL admits. Random weights give many such ties.
    """
    return float(2 * (2 * kl) ** 0.5)
