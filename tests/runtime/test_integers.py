"""The probe of integer products: it finds kernels that saturate, and lets exact ones pass."""

from __future__ import annotations

import numpy as np
import pytest

from truecast.errors import InputError
from truecast.runtime.integers import FULL, REDUCED, largest_code, largest_exact, onnxruntime_multiply, probe

INT16 = (-(1 << 15), (1 << 15) - 1)


def exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a.astype(np.int64) @ b.astype(np.int64)


def saturating(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """As `vpmaddubsw` does it: two neighbouring products are added in 16 bits, which saturate."""
    products = a.astype(np.int64)[:, :, None] * b.astype(np.int64)[None]
    pairs = products[:, 0::2] + products[:, 1::2]
    return pairs.clip(*INT16).sum(1)


def test_a_saturating_kernel_is_found_and_gets_codes_of_7_bits() -> None:
    seen = probe(FULL, saturating)
    assert not seen.exact and seen.wrong > seen.results // 4 and seen.largest_error > 0
    assert probe(REDUCED, saturating).exact
    assert largest_exact(saturating) == REDUCED


def test_an_exact_kernel_gets_all_8_bits() -> None:
    assert probe(FULL, exact) == probe(FULL, lambda a, b: exact(a, b).astype(np.int32))
    assert largest_exact(exact) == FULL


def test_a_kernel_that_is_wrong_in_one_number_is_no_exact_one() -> None:
    def off_by_one(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        result = exact(a, b)
        result[-1, -1] += 1
        return result

    assert probe(REDUCED, off_by_one).wrong > 0
    with pytest.raises(InputError, match="choose --precision int8"):
        largest_exact(off_by_one)


def test_the_code_chosen_here_is_exact_here() -> None:
    assert probe(largest_code(), onnxruntime_multiply).exact
