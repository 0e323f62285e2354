"""How long a call takes: percentiles over repeated calls on the wall clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 5
"""Calls that are timed even where they take longer than the time allowed: a percentile of fewer says nothing."""


@dataclass(frozen=True)
class Timing:
    """Wall-clock milliseconds of one call, over `calls` timed calls that took `seconds` in all."""

    p50: float
    p90: float
    p99: float
    mean: float
    calls: int
    seconds: float


def time_calls(
    call: Callable[[], object],
    warmup: int,
    repeats: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Times `repeats` calls after `warmup` untimed ones; stops early when `seconds` have passed, after FEWEST calls."""
    for _ in range(warmup):
        call()
    durations: list[float] = []
    spent = 0.0
    while len(durations) < repeats and (len(durations) < FEWEST or spent < seconds):
        start = clock()
        call()
        durations.append(clock() - start)
        spent += durations[-1]
    return summary(durations)


def summary(durations: Sequence[float]) -> Timing:
    """The percentiles (linear between neighbours) of durations in seconds."""
    milliseconds = 1e3 * np.asarray(durations, dtype=np.float64)
    p50, p90, p99 = (float(value) for value in np.percentile(milliseconds, (50, 90, 99)))
    return Timing(p50, p90, p99, float(milliseconds.mean()), len(durations), float(sum(durations)))
