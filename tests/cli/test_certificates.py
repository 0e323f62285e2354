"""A certificate's summary says what came nearest to its limit, and what a precision costs in plain words."""

from __future__ import annotations

from truecast.artifact import Certificate, Check, Status
from truecast.cli.certificates import prices, tiers_table


def check(tier: str, name: str, measured: float | None, limit: float | None, **more: object) -> Check:
    return Check.model_validate(
        {"tier": tier, "name": name, "passed": True, "measured": measured, "limit": limit} | more
    )


def cells(*checks: Check) -> list[list[str]]:
    table = tiers_table(checks)
    return [[str(cell) for cell in row] for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_the_check_nearest_to_its_limit_is_named_whichever_side_the_limit_is_on() -> None:
    most = check("parity", "error", 0.2, 1.0)
    least = check("parity", "cosine", 0.995, 0.99)
    bare = check("static", "kernels", None, None)
    assert cells(bare, most, least) == [
        ["static", "1 of 1", "", "", ""],
        ["parity", "2 of 2", "cosine", "0.995", "≥ 0.99"],
    ]


def test_a_failed_check_is_nearer_than_any_that_passed() -> None:
    failed = check("parity", "error", 2.0, 1.0, passed=False)
    assert cells(check("parity", "cosine", 0.995, 0.99), failed) == [["parity", "1 of 2", "error", "2", "≤ 1"]]


def test_what_a_precision_costs_is_a_sentence() -> None:
    said = "90 positions; the next token changes in 1.1% of positions, in 0.0% by more than a tie (0.4 nats)"
    checks = [
        check("parity", "price of the activations, mean KL", 0.0024, 0.02, unit="nats", detail="90 positions"),
        check("parity", "price of the activations, same choice", 1.0, 0.9, unit="of positions", detail=said),
        check("parity", "price of the format, mean cosine of logits", 0.9991, 0.9, detail="8 vectors"),
        check("parity", "error", 0.1, 1.0),
    ]
    assert prices(Certificate(status=Status.PROVEN, checks=checks)) == [
        "price of the activations: the next token changes in 1.1% of positions, in 0.0% by more than a tie (0.4 nats); "
        "mean KL 0.0024 nats",
        "price of the format: mean cosine of logits 0.999",
    ]
