"""Codes in bytes: any width of code, any number of codes, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.encodings import packed
from truecast.checkpoint.bits import SLOTS, pack, packed_bytes, unpack


def codes_of(seed: int, bits: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << bits, shape, np.uint8)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SLOTS), st.integers(0, 5), st.integers(0, 70), st.integers(0, 1 << 20))
def test_packed_codes_come_back(bits: int, rows: int, width: int, seed: int) -> None:
    codes = codes_of(seed, bits, rows, width)
    stored = pack(codes, bits)
    assert stored.shape == (rows, packed_bytes(width, bits))
    np.testing.assert_array_equal(unpack(stored, bits, width), codes)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SLOTS), st.integers(1, 70), st.integers(0, 1 << 20))
def test_the_lowest_bits_come_first(bits: int, width: int, seed: int) -> None:
    codes = codes_of(seed, bits, 3, width)
    np.testing.assert_array_equal(pack(codes, bits), packed(codes, bits))


def test_bytes_written_out() -> None:
    assert pack(np.array([[1, 2, 15]], np.uint8), 4).tolist() == [[0x21, 0x0F]]
    assert pack(np.array([[1, 2, 3, 0, 2]], np.uint8), 2).tolist() == [[0b00_11_10_01, 0b10]]
    assert unpack(np.array([[0x21, 0xFF]], np.uint8), 4, 3).tolist() == [[1, 2, 15]]


@pytest.mark.parametrize("bits", SLOTS)
def test_the_rest_of_the_last_byte_is_zero(bits: int) -> None:
    full = np.full((1, 1), (1 << bits) - 1, np.uint8)
    assert pack(full, bits).tolist() == [[(1 << bits) - 1]]


@pytest.mark.parametrize("bits", SLOTS)
def test_any_leading_axes_are_kept(bits: int) -> None:
    codes = codes_of(0, bits, 2, 3, 9)
    assert pack(codes, bits).shape == (2, 3, packed_bytes(9, bits))
    np.testing.assert_array_equal(unpack(pack(codes, bits), bits, 9), codes)
