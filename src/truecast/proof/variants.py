"""Tier 2, other ways to run the same graph: each must give what the usual way gives.

Graph optimisation off, one thread, past and present in arrays of their own as other loaders pass them, and the default
number of logits. One padded point with a prefill and three single tokens serves all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from truecast.artifact import Check, GraphInfo
from truecast.proof.feeds import run_feeds
from truecast.proof.float_cache import coded_bits
from truecast.proof.measures import largest_gap
from truecast.proof.operators import Array
from truecast.proof.parity import RELATIVE, TIER, Subject, compare_all, graph_logits, parity_checks
from truecast.proof.points import Point
from truecast.proof.reference import Reference
from truecast.proof.sessions import RUN_ERRORS, open_decoder
from truecast.proof.tally import Worst, broken, check
from truecast.runtime.cache import cache_tensors, empty_state
from truecast.runtime.decoder import KEEP_NAME, Decoder

INT8_RELATIVE = 2e-2
"""Limit where activations are rounded to int8: a last bit may tip a rounding, which moves a value by a whole step of
its block's largest / 127, and few such steps reach a logit."""

CODE_RELATIVE = {8: INT8_RELATIVE, 4: 2e-1}
"""The same for a quantized cache: a key or value whose last bit tips the rounding moves by a step of its channel's
largest / 127, or / 7."""


def variant_checks(
    folder: Path,
    info: GraphInfo,
    reference: Reference,
    usual: Subject,
    shipped: Subject,
    point: Point,
    wanted: Sequence[Array],
    against: str,
) -> list[Check]:
    """Checks of every other way to run the graph; `usual` follows the tight rule, `shipped` is what is used.

    `wanted` are the reference's logits at `point`.
    """
    exact = usual is not shipped
    limit = INT8_RELATIVE if exact else (usual.limit or RELATIVE)
    if (bits := coded_bits(info)) is not None:
        limit = CODE_RELATIVE[bits]
    written = Subject(
        "graph as written",
        open_decoder(folder, info, exact=exact, optimize=False, floats=True),
        usual.tight,
        usual.limit,
    )
    compare_all(reference, [written], [point], known={point.name: wanted})
    single = open_decoder(folder, info, threads=1 if _threads(shipped.decoder) > 1 else 2)
    return [
        *parity_checks(written, against),
        _same("one thread or several", shipped.decoder, graph_logits(single, point), point, limit),
        _same(
            "separate past and present",
            usual.decoder,
            plain_logits(usual.decoder, point),
            point,
            usual.limit or RELATIVE,
        ),
        *_coded_variants(shipped, point, info, limit),
        _default_logits(usual.decoder, point, usual.limit or RELATIVE),
    ]


def _coded_variants(shipped: Subject, point: Point, info: GraphInfo, limit: float) -> list[Check]:
    """The same for codes, which other loaders pass in arrays of their own, too."""
    if coded_bits(info) is None:
        return []
    name = "separate past and present, quantized cache"
    return [_same(name, shipped.decoder, plain_logits(shipped.decoder, point), point, limit)]


def _threads(decoder: Decoder) -> int:
    return int(decoder.session.get_session_options().intra_op_num_threads)


def _same(name: str, decoder: Decoder, other: Iterator[Array], point: Point, limit: float) -> Check:
    """Compares two ways to run the graph at the positions that hold tokens."""
    worst = Worst()
    try:
        for number, (want, got, run) in enumerate(zip(graph_logits(decoder, point), other, point.runs(), strict=True)):
            gap = largest_gap(got, want, point.mask[:, run.kept] == 1)
            worst.add(gap.error / (gap.scale or 1.0) if gap.finite else np.nan, limit, f"run {number + 1}")
    except RUN_ERRORS as error:
        return broken(TIER, name, f"{point.name}: {str(error).strip().splitlines()[0]}")
    return check(TIER, name, worst.value, limit, "of the largest logit", f"{point.name}, worst at {worst.where}")


def plain_logits(decoder: Decoder, point: Point, keep: int | None = 0) -> Iterator[Array]:
    """Logits of a point with past and present as ordinary arrays; `keep` None leaves their number to the graph."""
    tensors = cache_tensors(decoder.info)
    past = {tensor.past: empty_state(tensor, point.batch, 0) for tensor in tensors}
    outputs = [value.name for value in decoder.session.get_outputs()]
    taken = {value.name for value in decoder.session.get_inputs()}
    for run in point.runs():
        given = run_feeds(decoder.info, point, run, keep)
        fed = {name: array for name, array in given.items() if name in taken or name == KEEP_NAME} | past
        results = dict(zip(outputs, decoder.session.run(None, fed), strict=True))
        past = {tensor.past: results[tensor.present] for tensor in tensors}
        yield results["logits"]


def _default_logits(decoder: Decoder, point: Point, limit: float) -> Check:
    """Without a number the graph gives one row per prompt: the last one, or the last real one where it says 1."""
    name, worst = "default logits", Worst()
    single = decoder.session.get_outputs()[0].shape[1] == 1
    try:
        pairs = zip(plain_logits(decoder, point), plain_logits(decoder, point, keep=None), point.runs(), strict=True)
        for number, (whole, got, run) in enumerate(pairs):
            part = point.mask[:, run.start : run.end]
            last = np.array([np.flatnonzero(row).max(initial=0) for row in part]) if single else np.full(len(part), -1)
            want = whole[np.arange(len(whole)), last][:, None]
            if got.shape != want.shape:
                return broken(TIER, name, f"shape {got.shape} instead of {want.shape} at run {number + 1}")
            gap = largest_gap(got, want, np.ones(got.shape[:2], np.bool_))
            worst.add(gap.error / (gap.scale or 1.0) if gap.finite else np.nan, limit, f"run {number + 1}")
    except RUN_ERRORS as error:
        return broken(TIER, name, f"{point.name}: {str(error).strip().splitlines()[0]}")
    return check(TIER, name, worst.value, limit, "of the largest logit", f"{point.name}, worst at {worst.where}")
