"""Tier 1, weights whose scales were searched for: every way in which one may not be what the method made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.proof.conftest import Artifact
from tests.proof.planting import change_data, failed, manifest_of, reprove
from tests.weights.test_quantizers import decoded, rows_of_kind
from truecast.proof.searched import searched_shares
from truecast.weights.quantizers import STREAMED
from truecast.weights.quantizers.blocks import Quantized

BITS, BLOCK, WIDTH = 4, 32, 64
VALUES = "weights are the checkpoint's"
DOWN = "transformer.h.1.mlp.c_proj.weight"


def made_by(method: str) -> tuple[np.ndarray, Quantized]:
    values = rows_of_kind("normal", 30, WIDTH)
    return values, STREAMED[method].quantize(values, BITS, BLOCK)


def share(values: np.ndarray, codes: np.ndarray, made: Quantized) -> np.ndarray:
    """What the proof says of each block, the codes [rows, blocks, block] replaced."""
    held = decoded(made, BITS, WIDTH, codes)
    ends = tuple(decoded(made, BITS, WIDTH, np.full_like(codes, end)) for end in (0, 15))
    return searched_shares(values, held, (ends[0], ends[1]), BITS, BLOCK)


def codes_of(made: Quantized) -> np.ndarray:
    low, high = made.codes & 15, made.codes >> 4
    return np.stack((low, high), -1).reshape(*made.scales.shape, BLOCK)


@pytest.mark.parametrize("method", ["k-quant", "hqq"])
def test_any_code_one_off_is_beyond_the_bound(method: str) -> None:
    """However little it costs: only ties could be either, and random weights have none."""
    values, made = made_by(method)
    codes = codes_of(made)
    assert share(values, codes, made).max() <= 1
    for position in np.random.default_rng(1).integers(0, codes.size, 60):
        spoiled = codes.copy()
        code = spoiled.reshape(-1)[position]
        spoiled.reshape(-1)[position] = code + 1 if code < 15 else 14
        row, block, _ = np.unravel_index(position, codes.shape)
        assert share(values, spoiled, made)[row, block] > 1


@pytest.mark.parametrize("factor", [0.7, 0.9, 1.3, 2.0, 0.0, np.nan])
@pytest.mark.parametrize("method", ["k-quant", "hqq"])
def test_a_scale_that_is_off_is_beyond_the_bound(method: str, factor: float) -> None:
    """Even with the codes that are the nearest for that scale: the squared error gives it away."""
    values, made = made_by(method)
    wrong = Quantized(made.codes, made.scales * np.float32(factor), made.zeros, made.offsets)
    low, high = (decoded(wrong, BITS, WIDTH, np.full((30, 2, BLOCK), end, np.uint8)) for end in (0, 15))
    with np.errstate(all="ignore"):
        nearest = np.nan_to_num(np.clip(np.rint((values - low) / ((high - low) / 15)), 0, 15)).astype(np.uint8)
    assert (~(share(values, nearest.reshape(30, 2, BLOCK), wrong) <= 1)).mean() > 0.9


def test_another_range_does_not_excuse_itself() -> None:
    values = rows_of_kind("normal", 4, WIDTH)
    huge = np.full_like(values, 1e6)
    assert searched_shares(values, np.zeros_like(values), (-huge, huge), BITS, BLOCK).min() > 1


def spoil_byte(array: np.ndarray) -> None:
    array[0] ^= 1


def spoil_float(array: np.ndarray) -> None:
    array.view(np.float32)[1] += np.float32(0.2)


@pytest.mark.parametrize(
    ("method", "part", "change"),
    [
        ("k-quant", "codes", spoil_byte),
        ("k-quant", "zeros", spoil_byte),
        ("k-quant", "scales", spoil_float),
        ("hqq", "codes", spoil_byte),
        ("hqq", "scales", spoil_float),
        ("hqq", "offsets", spoil_float),
    ],
)
def test_a_spoiled_artifact_fails_with_the_weight_named(
    spoilable: Artifact, method: str, part: str, change: Callable[[np.ndarray], None]
) -> None:
    folder = spoilable("gpt2", "int4", method=method)
    assert any(method in info.packing for info in manifest_of(folder).weights)
    change_data(folder, f"{DOWN}.{part}", change)
    assert DOWN in failed(reprove(folder))[VALUES].detail
