"""Checks: what passes, what never does, and what is written down."""

from __future__ import annotations

import math

import pytest

from truecast.proof.tally import Worst, broken, check, counted, reported


@pytest.mark.parametrize(
    ("measured", "passes"), [(0.5, True), (1.0, True), (1.1, False), (math.nan, False), (None, False)]
)
def test_a_check_passes_up_to_its_limit(measured: float | None, passes: bool) -> None:
    assert check("t", "n", measured, 1.0).passed is passes


@pytest.mark.parametrize(("measured", "passes"), [(1.0, True), (0.9, False), (math.inf, False), (math.nan, False)])
def test_a_lower_limit_holds_the_other_way(measured: float, passes: bool) -> None:
    assert check("t", "n", measured, 1.0, at_least=True).passed is passes


def test_what_is_not_a_number_is_written_as_nothing() -> None:
    assert check("t", "n", math.nan, 1.0).measured is None


def test_last_digits_are_not_written() -> None:
    assert check("t", "n", 0.123456, 1.0).measured == 0.1235


def test_faults_are_counted_and_the_first_ones_named() -> None:
    result = counted("t", "n", [f"fault {i}" for i in range(7)], "faults")
    assert (result.passed, result.measured) == (False, 7.0)
    assert result.detail.startswith("fault 0;") and result.detail.endswith("and 2 more")
    assert counted("t", "n", [], "faults").passed


def test_what_does_not_work_fails() -> None:
    assert not broken("t", "n", "it does not run").passed


def test_the_worst_is_the_one_nearest_to_its_own_limit() -> None:
    worst = Worst()
    worst.add(3.0, 10.0, "large")
    worst.add(0.9, 1.0, "near")
    assert (worst.value, worst.limit, worst.where) == (0.9, 1.0, "near")
    worst.add(math.nan, 1.0, "broken")
    worst.add(0.99, 1.0, "later")
    assert worst.where == "broken"


def test_what_is_reported_only_fails_where_it_is_no_number() -> None:
    assert reported("t", "n", 3.0, "of 64", "").passed
    assert not reported("t", "n", math.nan, "of 64", "").passed
