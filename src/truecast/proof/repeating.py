"""Whether the reference says the same when it is asked twice; otherwise no comparison with it means anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from truecast.artifact import Check
from truecast.proof.operators import Array
from truecast.proof.parity import reference_logits
from truecast.proof.points import Point
from truecast.proof.reference import Reference
from truecast.proof.tally import counted
from truecast.trace.repeatable import REPEATED, apart_by

NAME = "the author's module is a function of its inputs"
TIER = "parity"


def repeat_faults(where: str, first: Mapping[str, Array], second: Mapping[str, Array]) -> Iterator[str]:
    """What differs between two calls with the same inputs, output by output."""
    for name, values in first.items():
        apart = apart_by(torch.from_numpy(values), torch.from_numpy(second[name])) if name in second else float("inf")
        if apart > REPEATED:
            yield f"{name} differs by {apart:.1e} of its largest value between two calls at {where}"


def repeat_check(faults: Sequence[str], reference: Reference, count: int) -> Check:
    """The check of these faults."""
    drawn = f"; it drew random numbers {reference.fresh.draws} times" if reference.fresh.draws else ""
    return counted(TIER, NAME, list(faults), "differences", f"called twice at {count} points{drawn}")


def repeated_decoder(reference: Reference, points: Sequence[Point], known: Mapping[str, Sequence[Array]]) -> Check:
    """Calls a decoder again where its logits are `known`, and twice at every point if it has drawn random numbers."""
    again = [point for point in points if point.name in known or reference.fresh.draws]
    faults: list[str] = []
    for point in again:
        first = known[point.name] if point.name in known else list(reference_logits(reference, point))
        second = reference_logits(reference, point)
        for run, (one, other) in enumerate(zip(first, second, strict=True)):
            faults += repeat_faults(f"{point.name}, run {run + 1}", {"logits": one}, {"logits": other})
    return repeat_check(faults, reference, len(again))
