"""Stacks: the matrices of experts as one tensor, any run of rows on its own, encoded where all of them are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tests.weights.stored import encoded, random, stored
from truecast.checkpoint.encoding import Affine, Factor, decode
from truecast.checkpoint.model import StoredTensor
from truecast.checkpoint.stacks import joined, stack
from truecast.errors import InputError

EXPERTS, GATE, WIDTH, GROUP = 3, 4, 8, 4


def floats(expert: int, part: int) -> StoredTensor:
    return stored(f"{expert}.{part}", random(GATE + part, WIDTH, seed=10 * expert + part))


def affine(expert: int, part: int, zero: int | None = None) -> StoredTensor:
    numbers = np.random.default_rng(10 * expert + part)
    codes = numbers.integers(0, 256, (GATE, WIDTH // 2), np.uint8)
    scales = numbers.random((GATE, WIDTH // GROUP), np.float32)
    zeros = numbers.integers(0, 16, (GATE, WIDTH // GROUP), np.uint8)
    encoding = Affine(
        4,
        GROUP,
        lambda start, stop: codes[start:stop],
        (Factor(scales.dtype, WIDTH // GROUP, lambda start, stop: scales[start:stop]),),
        zero if zero is not None else lambda start, stop: zeros[start:stop],
    )
    return encoded(f"{expert}.{part}", encoding, (GATE, WIDTH))


def stack_of(make: Callable[[int, int], StoredTensor]) -> tuple[StoredTensor, np.ndarray]:
    members = [[make(expert, part) for part in range(2)] for expert in range(EXPERTS)]
    return stack("experts", members), np.stack([np.concatenate([t.read() for t in row]) for row in members])


@pytest.mark.parametrize("make", [floats, affine])
def test_a_stack_is_its_matrices_one_below_the_other(make: Callable[[int, int], StoredTensor]) -> None:
    tensor, want = stack_of(make)
    assert tensor.shape == want.shape
    np.testing.assert_array_equal(tensor.read(), want)
    np.testing.assert_array_equal(tensor.rows(1, 2), want[1:2])
    assert tensor.matrices is not None
    for start in range(0, EXPERTS * want.shape[1], 3):
        for stop in range(start, EXPERTS * want.shape[1] + 1, 5):
            np.testing.assert_array_equal(tensor.matrices.rows(start, stop), want.reshape(-1, WIDTH)[start:stop])


def test_alike_encodings_stay_one() -> None:
    tensor, want = stack_of(affine)
    matrices = tensor.matrices
    assert matrices is not None and matrices.encoding is not None
    np.testing.assert_array_equal(decode(matrices.encoding, WIDTH, 3, 19), want.reshape(-1, WIDTH)[3:19])
    assert tensor.is_quantized or matrices.is_quantized


def test_encodings_that_differ_are_decoded() -> None:
    tensor, want = stack_of(lambda expert, part: affine(expert, part, zero=8 if expert == 1 else None))
    assert tensor.matrices is not None and tensor.matrices.encoding is None
    np.testing.assert_array_equal(tensor.read(), want)


def test_floats_are_not_taken_for_codes() -> None:
    tensor, _ = stack_of(floats)
    assert not tensor.is_quantized
    assert {part.name for part in tensor.parts} == {f"{expert}.{part}" for expert in range(3) for part in range(2)}


def test_experts_of_unlike_shapes_are_refused() -> None:
    members = [[floats(0, 0)], [replace(floats(1, 0), shape=(GATE, WIDTH + 1))]]
    with pytest.raises(InputError, match="no matrices of the same shape"):
        stack("experts", members)


def test_an_empty_run_of_rows_is_empty() -> None:
    read = joined([lambda start, stop: np.ones((stop - start, 2))] * 2, [3, 4])
    assert [read(place, place).shape for place in (0, 3, 7)] == [(0, 2)] * 3
