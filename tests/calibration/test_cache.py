"""Scales of a quantized cache: how far keys reach, what a scale costs, and a checkpoint's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from truecast.calibration.cache import (
    FRACTIONS,
    LARGEST,
    reaches,
    scale_of,
    squared_error,
    turned_around,
)
from truecast.calibration.prose import PROSE
from truecast.calibration.stored_scales import spread
from truecast.checkpoint.model import FileRange, StoredTensor
from truecast.errors import InputError
from truecast.proof.prompts import PROMPTS, TEXTS

HEADS, LENGTH, WIDTH = 2, 50, 8
HALVES = np.roll(np.arange(WIDTH), WIDTH // 2)
ALONE = np.arange(WIDTH)


def keys(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((HEADS, LENGTH, WIDTH)).astype(np.float32)


def rotated(array: np.ndarray, angle: float) -> np.ndarray:
    a, b = np.split(array, 2, -1)
    return np.concatenate((a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)), -1)


@pytest.mark.parametrize("pairs", [HALVES, None], ids=["known pairs", "unknown pairs"])
def test_no_rotation_turns_a_key_beyond_its_reach(pairs: np.ndarray | None) -> None:
    array = keys()
    reach = reaches(array, pairs)
    for angle in np.linspace(0, 2 * np.pi, 17):
        assert (np.abs(rotated(array, angle)).max(1) <= reach * (1 + 1e-6)).all()


def test_the_reach_of_known_pairs_is_reached() -> None:
    array = keys()
    farthest = np.max([np.abs(rotated(array, angle)).max(1) for angle in np.linspace(0, 2 * np.pi, 721)], 0)
    np.testing.assert_allclose(farthest, reaches(array, HALVES), rtol=1e-4)


def test_channels_that_are_not_rotated_reach_as_far_as_they_do() -> None:
    np.testing.assert_array_equal(reaches(keys(), ALONE), np.abs(keys()).max(1))


def test_turning_leaves_radii_and_other_channels_as_they_are() -> None:
    half = np.concatenate((np.roll(np.arange(4), 2), np.arange(4, WIDTH)))
    turned = turned_around(keys(), half)
    np.testing.assert_array_equal(turned[..., 4:], keys()[..., 4:])
    radius = np.hypot(turned[..., :2], turned[..., 2:4])
    np.testing.assert_allclose(radius, np.hypot(keys()[..., :2], keys()[..., 2:4]), rtol=1e-4)
    assert np.abs(turned - keys())[..., :4].max() > 1


def test_int8_has_room_for_half_as_much_again() -> None:
    reach = np.array([[1.0, 2.0]], np.float32)
    np.testing.assert_allclose(scale_of(reach, 8) * LARGEST[8], 1.5 * reach, rtol=1e-6)


def test_a_channel_that_slept_has_some_range() -> None:
    scale = scale_of(np.array([[0.0, 2.56]], np.float32), 8)
    np.testing.assert_allclose(scale[0, 0], 1.5 * 0.01 / 127, rtol=1e-5)
    assert (scale_of(np.zeros((1, 2), np.float32), 4) > 0).all()


def test_int4_takes_the_fraction_with_the_least_error() -> None:
    array = keys()
    array[:, 0] *= 30  # one token far out: clipping it costs less than making all others coarse
    reach = reaches(array, ALONE)
    errors = np.stack([squared_error(array, scale_of(reach, 4) * f, 4) for f in FRACTIONS[4]])
    chosen = squared_error(array, scale_of(reach, 4, errors), 4)
    np.testing.assert_allclose(chosen, errors.min(0), rtol=1e-6)
    assert (chosen < errors[0]).any()


def stored(values: np.ndarray) -> StoredTensor:
    location = FileRange(Path("model.safetensors"), 0, values.nbytes)
    return StoredTensor("k_scale", values.shape, values.dtype, "F32", location, lambda a, b: np.atleast_1d(values)[a:b])


@pytest.mark.parametrize("count", [1, HEADS, HEADS * WIDTH])
def test_stored_scales_are_spread_over_heads_and_channels(count: int) -> None:
    values = np.arange(1, count + 1, dtype=np.float32)
    want = np.broadcast_to(values.reshape(-1, 1) if count <= HEADS else values.reshape(HEADS, WIDTH), (HEADS, WIDTH))
    np.testing.assert_array_equal(spread(stored(values), HEADS, WIDTH), want)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([0.0], "is not a positive number"),
        ([np.nan], "is not a positive number"),
        ([1.0, 1.0, 1.0], "has 3 values, which are neither one"),
    ],
)
def test_damaged_scales_are_refused(values: list[float], says: str) -> None:
    with pytest.raises(InputError, match=says):
        spread(stored(np.array(values, np.float32)), HEADS, WIDTH)


def test_the_calibration_text_is_none_of_the_proofs() -> None:
    assert not set(PROSE) & {*TEXTS, *PROMPTS}
