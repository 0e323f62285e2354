"""Words of codes: streams, planes, waste, the transpose and the order of columns, against codes written bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoint.schemes.stored import Array
from truecast.checkpoint.bits import unpack
from truecast.checkpoint.schemes.nibbles import INTERLEAVED, PLAIN, Places, turned_nibbles
from truecast.checkpoint.schemes.words import (
    ORDERED_ROWS,
    TURNED_ROWS,
    WIDENED_ROWS,
    columns_of,
    compacted,
    joined,
    reordered,
    slot_of,
    turned,
    widened,
)

PROPERTY = settings(max_examples=30, deadline=None)
BITS = st.integers(1, 8)
SEEDS = st.integers(0, 99)
# On both sides of the numbers of rows that are worked on at once.
ROWS = st.sampled_from([0, 1, 3, WIDENED_ROWS, WIDENED_ROWS + 1])


def random_codes(seed: int, rows: int, width: int, bits: int) -> Array:
    return np.random.default_rng(seed).integers(0, 1 << bits, (rows, width), np.uint8)


def stream(codes: Array, bits: int, size: int) -> Array:
    """Bytes of each row, `size` of them: one long integer, code i at bit i · bits."""
    numbers = [sum(int(code) << place * bits for place, code in enumerate(row)) for row in codes]
    return np.array([list(number.to_bytes(size, "little")) for number in numbers], np.uint8).reshape(len(codes), size)


@PROPERTY
@given(rows=ROWS, width=st.integers(1, 70), bits=BITS, slot=st.sampled_from([2, 4, 8]), seed=SEEDS)
def test_a_stream_is_widened_to_any_slot_that_holds_its_codes(
    rows: int, width: int, bits: int, slot: int, seed: int
) -> None:
    bits = min(bits, slot)
    codes = random_codes(seed, rows, width, bits)
    result = widened(stream(codes, bits, -(-width * bits // 8)), bits, slot)
    np.testing.assert_array_equal(unpack(result, slot, width), codes)


@PROPERTY
@given(rows=ROWS, blocks=st.integers(1, 3), bits=st.integers(2, 8), seed=SEEDS)
def test_planes_are_joined(rows: int, blocks: int, bits: int, seed: int) -> None:
    codes = random_codes(seed, rows, 32 * blocks, bits)
    widths = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}.get(bits, (bits,))
    planes = []
    for start in range(0, codes.shape[1], 32):
        left = codes[:, start : start + 32]
        for width in widths:
            planes.append(stream(left & (1 << width) - 1, width, 4 * width))
            left = left >> width
    np.testing.assert_array_equal(unpack(joined(np.hstack(planes), bits, 8), 8, codes.shape[1]), codes)
    slot = slot_of(bits)
    np.testing.assert_array_equal(unpack(joined(np.hstack(planes), bits, slot), slot, codes.shape[1]), codes)


@PROPERTY
@given(rows=st.integers(0, 3), words=st.integers(1, 3), bits=BITS, seed=SEEDS)
def test_words_that_waste_bits_are_compacted(rows: int, words: int, bits: int, seed: int) -> None:
    per_word = 32 // bits
    codes = random_codes(seed, rows, words * per_word, bits)
    parts = [stream(codes[:, start : start + per_word], bits, 4) for start in range(0, words * per_word, per_word)]
    result = compacted(np.hstack(parts).view("<u4"), bits, slot_of(bits))
    np.testing.assert_array_equal(unpack(result, slot_of(bits), words * per_word), codes)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (TURNED_ROWS + 1, 5), (4 * TURNED_ROWS, 70)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.uint32])
def test_a_matrix_is_turned(shape: tuple[int, int], dtype: type) -> None:
    matrix = np.arange(shape[0] * shape[1]).reshape(shape).astype(dtype)
    assert turned(matrix).flags.c_contiguous
    np.testing.assert_array_equal(turned(matrix), matrix.T)


@PROPERTY
@given(
    rows=st.sampled_from([0, 1, ORDERED_ROWS, ORDERED_ROWS + 1]),
    width=st.integers(1, 40),
    slot=st.sampled_from([2, 4, 8]),
    seed=SEEDS,
)
def test_columns_are_reordered(rows: int, width: int, slot: int, seed: int) -> None:
    codes = random_codes(seed, rows, width, slot)
    order = np.random.default_rng(seed).permutation(width)
    words = stream(codes, slot, -(-width * slot // 32) * 4).view("<u4").T
    result = reordered(lambda start, stop: columns_of(words[:, start:stop]), rows, slot, order)
    assert result.shape == (rows, -(-width * slot // 8))
    np.testing.assert_array_equal(unpack(result, slot, width), codes[:, order])


@pytest.mark.parametrize("places", [PLAIN, INTERLEAVED])
@PROPERTY
@given(words=st.integers(0, 40), width=st.integers(1, 9), seed=SEEDS)
def test_eight_rows_of_a_word_are_turned(places: Places, words: int, width: int, seed: int) -> None:
    codes = random_codes(seed, 8 * words, width, 4)
    by_word = codes.reshape(words, 8, width).transpose(2, 0, 1)[..., places].reshape(width * words, 8)
    packed = stream(by_word, 4, 4).view("<u4").reshape(width, words)
    np.testing.assert_array_equal(unpack(turned_nibbles(packed, places), 4, width), codes)
