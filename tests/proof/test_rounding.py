"""The bound of rounding to nearest: codes and scales made again from the definition."""

from __future__ import annotations

import numpy as np
import pytest

from truecast.proof.rounding import rounded_shares
from truecast.weights.channels import quantize_channels
from truecast.weights.quantize import dequantize_rows, quantize_rows

BLOCK, WIDTH = 32, 128


def blocks(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), -1, BLOCK)


def weights(kind: str) -> np.ndarray:
    numbers = np.random.default_rng(7)
    rows = numbers.standard_normal((64, WIDTH)).astype(np.float32)
    if kind == "grid":
        rows = (numbers.integers(-8, 9, rows.shape) * 0.125).astype(np.float32)
    if kind == "zeros":
        rows[:, :BLOCK] = 0
    return rows * np.float32(1e-3 if kind == "small" else 1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["normal", "grid", "zeros", "small"])
def test_what_was_rounded_to_nearest_is_within_the_bound_and_nothing_else(kind: str, bits: int) -> None:
    rows = weights(kind)
    codes, scales = quantize_rows(rows, bits, BLOCK)
    held, middle = dequantize_rows(codes, scales, bits, WIDTH), 1 << (bits - 1)
    assert rounded_shares(blocks(rows), blocks(held), middle, None).max() <= 1
    larger = rounded_shares(blocks(rows), blocks(held * np.float32(1.01)), middle, None)
    full = np.abs(blocks(rows)).max(-1) > 0
    assert (larger[full] > 1).all()
    held[0, -1] += scales[0, -1]
    assert rounded_shares(blocks(rows), blocks(held), middle, None)[0, -1] > 1


@pytest.mark.parametrize("top", [63, 127])
def test_channels_that_go_as_far_on_both_sides(top: int) -> None:
    rows = weights("normal")
    codes, scales = quantize_channels(rows, top)
    held = codes.astype(np.float32) * scales[:, None]
    assert rounded_shares(rows[:, None], held[:, None], 128, top).max() <= 1
    assert (rounded_shares(rows[:, None], held[:, None] * np.float32(1.00001), 128, top) > 1).all()


def test_not_a_number_is_beyond_every_bound() -> None:
    rows = weights("normal")
    held = np.full_like(rows, np.nan)
    assert np.isinf(rounded_shares(blocks(rows), blocks(held), 8, None)).all()
