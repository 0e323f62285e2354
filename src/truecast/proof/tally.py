"""From measured values to the checks of a certificate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from truecast.artifact import Check
from truecast.errors import InputError

UNREAD, UNCOMPARED = "weights can be read from the graph", "the graph can be compared"
"""Checks that fail where a graph is so wrong that nothing can be measured."""
DIGITS = 4
"""Significant digits of a measured value in the certificate."""


def check(
    tier: str,
    name: str,
    measured: float | None,
    limit: float | None,
    unit: str = "",
    detail: str = "",
    *,
    at_least: bool = False,
) -> Check:
    """A check that passes when `measured` is at most `limit` (`at_least`: at least); never for NaN or infinity."""
    finite = measured is not None and math.isfinite(measured)
    within = finite and limit is not None and measured is not None
    passed = bool(within and (measured >= limit if at_least else measured <= limit))  # type: ignore[operator]
    return Check(
        tier=tier,
        name=name,
        passed=passed,
        measured=rounded(measured) if finite else None,
        limit=rounded(limit),
        unit=unit,
        detail=detail,
    )


def broken(tier: str, name: str, detail: str) -> Check:
    """A check that could not be measured because something does not work at all."""
    return Check(tier=tier, name=name, passed=False, detail=detail)


def attempted(tier: str, name: str, make: Callable[[], Iterable[Check]]) -> list[Check]:
    """The checks that `make` gives; where it breaks, one that failed, with the reason.

    A graph or a manifest may be wrong in any way, and break ONNX Runtime, NumPy or our own code.
    """
    try:
        return list(make())
    except Exception as error:
        return [broken(tier, name, broke(error))]


def attempts(tier: str, groups: Mapping[str, Callable[[], Iterable[Check]]]) -> list[Check]:
    """The checks of all groups, each attempted, so that one that breaks hides no other."""
    return [found for what, make in groups.items() for found in attempted(tier, f"{what}: can be checked", make)]


def broke(error: Exception) -> str:
    """What an error is and says, in one line; one of our own is a sentence."""
    return reason(error) if isinstance(error, InputError) else f"{type(error).__name__}: {reason(error)}"


def reported(tier: str, name: str, measured: float, unit: str, detail: str) -> Check:
    """A measured value without a gate; only one that is not finite fails."""
    finite = math.isfinite(measured)
    value = rounded(measured) if finite else None
    return Check(tier=tier, name=name, passed=finite, measured=value, unit=unit, detail=detail)


def counted(tier: str, name: str, faults: list[str], unit: str, detail: str = "") -> Check:
    """A check that passes when there are no faults; the first few are named."""
    named = "; ".join(faults[:NAMED_AT_MOST]) + (
        f" and {len(faults) - NAMED_AT_MOST} more" if len(faults) > NAMED_AT_MOST else ""
    )
    return check(tier, name, float(len(faults)), 0.0, unit, named or detail)


NAMED_AT_MOST = 5
"""How many faults one check names."""


def reason(error: Exception) -> str:
    """The first line of what an error says; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def rounded(value: float | None) -> float | None:
    """`value` with DIGITS significant digits, so that a certificate does not change with the last bits of a sum."""
    return None if value is None else float(f"{value:.{DIGITS - 1}e}")


@dataclass
class Worst:
    """The worst of many measured values, each with its own limit, by how much of its limit it takes."""

    value: float = 0.0
    limit: float = math.inf
    where: str = ""
    count: int = 0
    _share: float = field(default=-1.0, repr=False)

    def add(self, value: float, limit: float, where: str) -> None:
        """Takes in one value; a NaN is worse than every number."""
        self.count += 1
        share = value / limit if limit else (0.0 if value == 0 else math.inf)
        if math.isnan(share):
            share = math.inf
        if share > self._share:
            self.value, self.limit, self.where, self._share = value, limit, where, share
