"""A certificate for people: its verdict, a row for each tier or for each check, and what a precision costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.table import Table
from rich.text import Text

from truecast.artifact import Certificate, Check, Status

PRICE = "price of"
"""How the names of checks begin that measure what a precision costs."""


def verdict(certificate: Certificate) -> str:
    """The status with the number of checks behind it."""
    checks = certificate.checks
    if certificate.status is Status.UNPROVEN:
        return "unproven: no proof was run"
    passed = sum(check.passed for check in checks)
    return f"{certificate.status}: {passed} of {len(checks)} checks passed"


def tiers_table(checks: Sequence[Check]) -> Table:
    """One row per tier: how many of its checks passed, and the one that came nearest to its limit."""
    table = Table("tier", "passed", "nearest to its limit", "measured", "limit")
    for tier in dict.fromkeys(check.tier for check in checks):
        own = [check for check in checks if check.tier == tier]
        count = f"{sum(check.passed for check in own)} of {len(own)}"
        bounded = [check for check in own if check.measured is not None and check.limit]
        near = max(bounded, key=_share, default=None)
        fields = ("", "", "") if near is None else (near.name, _number(near.measured), _limit(near))
        table.add_row(Text(tier), _coloured(count, all(check.passed for check in own)), *map(Text, fields))
    return table


def checks_table(checks: Iterable[Check]) -> Table:
    """One row per check."""
    table = Table("tier", "check", "measured", "limit", "unit", "ok")
    for check in checks:
        ok = _coloured("yes" if check.passed else "NO", check.passed)
        table.add_row(Text(check.tier), Text(check.name), _number(check.measured), _limit(check), Text(check.unit), ok)
    return table


def prices(certificate: Certificate) -> list[str]:
    """What a precision costs, a line for each thing that costs, of the checks that measure it."""
    priced = [check for check in certificate.checks if check.name.startswith(PRICE)]
    groups = groupby(priced, key=lambda check: check.name.partition(", ")[0])
    plain_first = (sorted(checks, key=lambda check: check.unit == "nats") for _, checks in groups)
    return [f"{checks[0].name.partition(', ')[0]}: {'; '.join(map(_price, checks))}" for checks in plain_first]


def _price(check: Check) -> str:
    """What one check says of a price: its own sentence, behind the semicolon of its detail, or else its number."""
    _, _, said = check.detail.partition("; ")
    _, _, what = check.name.partition(", ")
    number = f"{what} {_number(check.measured)} {check.unit}".strip()
    return said if said and check.unit != "nats" else "; ".join(filter(None, (said, number)))


def _coloured(text: str, good: bool) -> Text:
    return Text(text, "green" if good else "bold red")


def _share(check: Check) -> float:
    """How much of its limit a check has used up; 1 is the limit itself, above it the check has failed."""
    measured, limit = abs(check.measured or 0.0), abs(check.limit or 0.0)
    share = limit / measured if _is_least(check) and measured else measured / limit
    return max(share, 1.0) if not check.passed else share


def _is_least(check: Check) -> bool:
    """Whether the limit is the least value, as the verdict tells: a passed value above it had to be at least that."""
    assert check.measured is not None
    assert check.limit is not None
    return check.measured != check.limit and check.passed == (check.measured > check.limit)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _limit(check: Check) -> str:
    """The limit with its direction."""
    if check.measured is None or check.limit is None:
        return _number(check.limit)
    return f"{'≥' if _is_least(check) else '≤'} {_number(check.limit)}"
