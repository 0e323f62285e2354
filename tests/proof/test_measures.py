"""Measures against their definitions, and on the values that would fool them."""

from __future__ import annotations

import numpy as np
import pytest

from truecast.proof import measures
from truecast.proof.measures import drift, largest_gap

ALL = np.ones((2, 3), np.bool_)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks for each row, of two positions and of one, as in a large vocabulary."""
    monkeypatch.setattr(measures, "CHUNK_VALUES", 14)


def logits(seed: int) -> np.ndarray:
    return 3 * np.random.default_rng(seed).standard_normal((2, 3, 7)).astype(np.float32)


def test_the_largest_gap_is_found_with_its_place() -> None:
    want = logits(0)
    want[1, 2, 4] = -20
    got = want.copy()
    got[1, 2, 4] -= 0.5
    gap = largest_gap(got, want, ALL)
    assert (gap.at, gap.finite, gap.scale) == ((1, 2), True, 20)
    assert gap.error == pytest.approx(0.5, rel=1e-5)


def test_padded_positions_are_not_compared() -> None:
    want = logits(0)
    got = want.copy()
    real = ALL.copy()
    real[0], real[1, 0] = False, False
    got[0], got[1, 0] = 9, 9
    assert largest_gap(got, want, real).error == 0
    got[1, 1, 3] += 0.5
    gap, apart = largest_gap(got, want, real), drift(got, want, real)
    assert (gap.at, gap.error, len(apart.divergence)) == ((1, 1), pytest.approx(0.5, rel=1e-5), 2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_seen_even_in_padding(value: float) -> None:
    got = logits(0)
    got[0, 1, 0] = value
    real = ALL.copy()
    real[0, 1] = False
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
    gap = largest_gap(got, want, ALL)
    assert not np.isfinite(gap.error) and np.isfinite(gap.scale)


def test_divergence_is_that_of_the_definition() -> None:
    want, got = (np.round(64 * logits(seed)) / 64 for seed in (1, 2))  # float32 has them exactly, and plus 128, too
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (want.astype(np.float64), got.astype(np.float64)))
    found = drift(got + 128, want - 128, ALL)  # changes nothing, though exp(128) is more than float32 has
    np.testing.assert_allclose(found.divergence, (p * np.log(p / q)).sum(-1).reshape(-1), rtol=1e-5)


def test_divergence_is_never_below_zero() -> None:
    want = logits(1)
    assert (drift(want * np.float32(1 + 1e-6), want, ALL).divergence >= 0).all()


def test_shortfall_is_what_the_reference_loses_by_the_other_choice() -> None:
    want = np.array([[[1.0, 4.0, 2.5]], [[1.0, 4.0, 2.5]]], np.float32)
    got = np.array([[[0.0, 1.0, 9.0]], [[0.0, 5.0, 1.0]]], np.float32)
    assert drift(got, want, ALL[:, :1]).shortfall.tolist() == [1.5, 0.0]


def test_nothing_to_compare_gives_nothing() -> None:
    assert not len(drift(logits(0), logits(1), ~ALL).divergence)


def test_a_vocabulary_larger_than_a_chunk_is_compared_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "CHUNK_VALUES", 3)
    want = logits(0)
    got = want.copy()
    got[1, 2, 4] += 9
    assert largest_gap(got, want, ALL).at == (1, 2)
