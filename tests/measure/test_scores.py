"""Scores against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from truecast.measure.scores import accuracy, cosines, macro_f1, pairwise_similarities, spearman


def test_accuracy_is_the_share_of_equal_entries() -> None:
    assert accuracy([0, 1, 2, 2], [0, 2, 2, 2]) == 0.75


def test_macro_f1_by_hand() -> None:
    # Class 0: TP 2, FP 0, FN 1 → 4/5. Class 1: TP 1, FP 1, FN 1 → 1/2. Class 2: TP 1, FP 1, FN 0 → 2/3.
    truth, guess = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2]
    assert macro_f1(truth, guess) == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)


def test_macro_f1_counts_a_class_that_only_the_model_sees() -> None:
    # Class 3 never occurs: F1 0. Class 0: TP 1, FN 1 → 2/3. Class 1 is right: 1.
    assert macro_f1([0, 0, 1], [0, 3, 1]) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_macro_f1_is_not_accuracy_where_classes_differ_in_size() -> None:
    truth = [0] * 98 + [1, 1]
    assert accuracy(truth, [0] * 100) == 0.98
    assert macro_f1(truth, [0] * 100) == pytest.approx((2 * 98 / 198) / 2)


def test_cosine_of_rows() -> None:
    left = np.array([[1.0, 0.0], [1.0, 1.0], [3.0, 4.0]])
    right = np.array([[0.0, 2.0], [2.0, 2.0], [-3.0, -4.0]])
    assert cosines(left, right) == pytest.approx([0.0, 1.0, -1.0])


def test_cosine_takes_rows_of_any_rank_as_vectors() -> None:
    left = np.arange(12.0).reshape(2, 2, 3)
    expected = [
        np.dot(a.ravel(), b.ravel()) / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(left, left[::-1], strict=True)
    ]
    assert cosines(left, left[::-1]) == pytest.approx(expected)


def test_cosine_of_zeros_huge_values_and_nan() -> None:
    left = np.array([[0.0, 0.0], [0.0, 0.0], [1e300, 1e300], [1.0, np.nan], [1.0, np.inf]])
    right = np.array([[0.0, 0.0], [1.0, 0.0], [1e300, 1e300], [1.0, 1.0], [1.0, 1.0]])
    found = cosines(left, right)
    assert found[:3] == pytest.approx([1.0, 0.0, 1.0])
    assert np.isnan(found[3:]).all()


def test_spearman_against_the_textbook_formula() -> None:
    # No ties: 1 − 6 Σd² / (n(n² − 1)), d = (1, 1, -1, -1, 0) here.
    assert spearman([1, 2, 3, 4, 5], [2, 3, 2.5, 3.5, 9]) == pytest.approx(1 - 6 * 2 / (5 * 24))


def test_spearman_shares_ranks_among_ties() -> None:
    # Ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4): covariance 4.5, variances 4.5 and 5.
    assert spearman([1, 2, 2, 3], [10, 20, 30, 40]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_spearman_sees_order_only() -> None:
    values = np.array([0.1, 0.5, 0.2, 0.9])
    assert spearman(values, np.exp(10 * values)) == pytest.approx(1.0)
    assert spearman(values, -values) == pytest.approx(-1.0)
    assert np.isnan(spearman(values, np.ones(4)))
    assert np.isnan(spearman(values, [1, 2, np.nan, 3]))


def test_pairwise_similarities_leave_out_the_diagonal() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0], [0.0, 0.0]])
    half = np.sqrt(0.5)
    assert pairwise_similarities(vectors) == pytest.approx([0.0, half, 0.0, half, 0.0, 0.0])


@pytest.mark.parametrize("score", [accuracy, macro_f1, spearman])
def test_rows_that_do_not_fit_are_refused(score: object) -> None:
    for left, right in (([1, 2], [1, 2, 3]), ([], []), ([[1]], [[1]])):
        with pytest.raises(ValueError, match="one length"):
            score(left, right)  # type: ignore[operator]
