"""Cosines over a grid: one for each vector, and one for all vectors of few numbers together."""

from __future__ import annotations

import numpy as np
import pytest

from truecast.proof.cosines import FEW, Cosines


def wide(values: object) -> np.ndarray:
    """Zeros behind the numbers of the last axis, which no cosine notices."""
    array = np.array(values, np.float32)
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, FEW - array.shape[-1])])


def of(*pairs: tuple[object, object]) -> list[float]:
    found = Cosines()
    for got, want in pairs:
        found.add(np.array(got, np.float32), np.array(want, np.float32))
    return [float(value) for value in found.values()]


def test_every_vector_of_the_last_axis_gives_one() -> None:
    got, want = [[[1, 0], [1, 1]], [[0, 2], [1, 0]]], [[[2, 0], [1, 0]], [[0, -3], [1, 0]]]
    assert of((wide(got), wide(want))) == pytest.approx([1, 2**-0.5, -1, 1])


def test_a_vector_of_zeros_is_right_only_where_the_author_has_one() -> None:
    assert of((wide([[0, 0], [0, 0], [1, 0]]), wide([[0, 0], [1, 0], [0, 0]]))) == [1, 0, 0]


def test_single_numbers_are_one_vector_over_all_points() -> None:
    """A score near zero whose sign turns is a small error; alone its cosine would be -1."""
    assert of(([[3.0], [-0.01]], [[3.0], [0.01]]), ([[4.0]], [[4.0]])) == pytest.approx([1.0], abs=1e-4)
    assert of(([[3.0], [4.0]], [[4.0], [-3.0]])) == pytest.approx([0.0], abs=1e-7)
    assert of((2.0, 2.0)) == [1.0]


def test_the_logits_of_a_few_classes_are_one_vector_over_all_points() -> None:
    right, turned = [[5.0, -5.0], [0.01, -0.01]], [[5.0, -5.0], [-0.01, 0.01]]
    assert of((turned, right)) == pytest.approx([1.0], abs=1e-4)
    assert of(([[-5.0, 5.0], [0.01, -0.01]], right)) == pytest.approx([-1.0], abs=1e-4)


def test_single_numbers_that_are_all_zero_are_right() -> None:
    assert of(([[0.0]], [[0.0]])) == [1.0]
    assert of(([[1.0]], [[0.0]])) == [0.0]


def test_rows_that_are_not_finite_in_the_reference_do_not_count() -> None:
    assert of((wide([[1, 2], [1, 0]]), wide([[np.inf, 0], [1, 0]]))) == [1.0]
    assert of() == []
