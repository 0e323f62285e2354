"""Measures against their definitions, and on the values that would fool them."""

from __future__ import annotations

import numpy as np
import pytest

from truecast.proof import measures
from truecast.proof.measures import drift, largest_gap

ALL = np.ones((2, 3), np.bool_)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks for each row, as in a large vocabulary."""
    monkeypatch.setattr(measures, "CHUNK_VALUES", 10)


def logits(seed: int) -> np.ndarray:
    return 3 * np.random.default_rng(seed).standard_normal((2, 3, 7)).astype(np.float32)


def test_the_largest_gap_is_found_with_its_place() -> None:
    want = logits(0)
    got = want.copy()
    got[1, 2, 4] += 0.5
    gap = largest_gap(got, want, ALL)
    assert (gap.at, gap.finite) == ((1, 2), True)
    assert gap.error == pytest.approx(0.5, rel=1e-5)
    assert gap.scale == np.abs(want).max()


def test_padded_positions_are_not_compared() -> None:
    want = logits(0)
    got = want.copy()
    got[1, 2] += 9
    real = ALL.copy()
    real[1, 2] = False
    assert largest_gap(got, want, real).error == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_seen_even_in_padding(value: float) -> None:
    got = logits(0)
    got[1, 2, 0] = value
    real = ALL.copy()
    real[1, 2] = False
    assert not largest_gap(got, logits(0), real).finite


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_both_hold_alike_is_equal_even_where_it_is_not_finite(value: float) -> None:
    want, got = logits(0), logits(0) + np.float32(0.5)
    want[1, 2], got[1, 2] = value, value
    want[0, 1, 3] = got[0, 1, 3] = value
    gap, apart = largest_gap(got, want, ALL), drift(got, want, ALL)
    assert (gap.finite, gap.error) == (True, pytest.approx(0.5, rel=1e-5))
    assert np.isfinite([gap.scale, *apart.divergence, *apart.shortfall]).all()


@pytest.mark.parametrize(("ours", "authors"), [(0.0, np.nan), (np.nan, 0.0), (np.inf, -np.inf), (np.nan, np.inf)])
def test_what_one_side_alone_holds_is_no_number(ours: float, authors: float) -> None:
    want, got = logits(0), logits(0)
    want[1, 2, 0], got[1, 2, 0] = authors, ours
    assert not np.isfinite(largest_gap(got, want, ALL).error)


def test_divergence_is_that_of_the_definition() -> None:
    want, got = logits(1).astype(np.float64), logits(2).astype(np.float64)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (want, got))
    found = drift(got.astype(np.float32), want.astype(np.float32), ALL)
    np.testing.assert_allclose(found.divergence, (p * np.log(p / q)).sum(-1).reshape(-1), rtol=1e-5)


def test_shortfall_is_what_the_reference_loses_by_the_other_choice() -> None:
    want = np.array([[[1.0, 4.0, 2.5]], [[1.0, 4.0, 2.5]]], np.float32)
    got = np.array([[[0.0, 1.0, 9.0]], [[0.0, 5.0, 1.0]]], np.float32)
    assert drift(got, want, ALL[:, :1]).shortfall.tolist() == [1.5, 0.0]


def test_nothing_to_compare_gives_nothing() -> None:
    assert not len(drift(logits(0), logits(1), ~ALL).divergence)
