"""Made-up inputs for a graph that nobody described: sizes for its symbols, and values that most models accept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np

BATCH, LENGTH, PAST = 2, 7, 0
"""Sizes of the first trial: a batch above 1, for which rotary operators and squeezes differ, and an odd length."""
IMAGE_SIZE, SAMPLES = 64, 3200
"""For axes of pixels and of audio: convolutions reduce short ones to nothing."""
SEED = 7

DTYPES: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bfloat16)": ml_dtypes.bfloat16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class Input(Protocol):
    """An input as a session describes it."""

    name: str
    type: str
    shape: Sequence[int | str | None]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the axes that are free: rows, new tokens, pixels, samples."""

    batch: int = BATCH
    length: int = LENGTH
    pixels: int = IMAGE_SIZE
    samples: int = SAMPLES

    def __str__(self) -> str:
        return f"batch {self.batch}, length {self.length}"


GRID = (Sizes(batch=1), Sizes(batch=3), Sizes(length=1), Sizes(length=17), Sizes(pixels=96, samples=4800))
"""Sizes around the first trial, one changed at a time."""


def can_feed(inputs: Sequence[Input]) -> bool:
    """Whether every input is a tensor of a dtype that can be made up."""
    return all(value.type in DTYPES for value in inputs)


def make_feeds(
    inputs: Sequence[Input], sizes: Sizes, bounds: Mapping[str, int], padded: bool = False
) -> dict[str, np.ndarray]:
    """Values for every input: ids below their table's rows (`bounds`), masks of ones, positions that count up.

    `padded` masks the first half of the first row, as padding on the left does.
    """
    random, named = np.random.default_rng(SEED), _named_sizes(inputs, sizes)
    return {value.name: _values(value, _shape(value, sizes, named), bounds, random, padded) for value in inputs}


def _named_sizes(inputs: Sequence[Input], sizes: Sizes) -> dict[str, int]:
    """One size for each name of an axis; integer inputs, which are tokens, decide before float ones."""
    named: dict[str, int] = {}
    for value in sorted(inputs, key=lambda value: "float" in value.type):
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, str):
                named.setdefault(dim, _size(value, axis, dim, sizes))
    return named


def _shape(value: Input, sizes: Sizes, named: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(
        named[dim] if isinstance(dim, str) else _size(value, axis, dim, sizes) for axis, dim in enumerate(value.shape)
    )


def _size(value: Input, axis: int, dim: int | str | None, sizes: Sizes) -> int:
    if isinstance(dim, int):
        return dim
    if axis == 0:
        return sizes.batch
    if "past" in value.name or "cache" in value.name:
        return PAST
    if "float" in value.type:
        return sizes.pixels if len(value.shape) == 4 else sizes.samples if len(value.shape) == 2 else sizes.length
    return sizes.length


def _values(
    value: Input, shape: tuple[int, ...], bounds: Mapping[str, int], random: np.random.Generator, padded: bool
) -> np.ndarray:
    dtype = DTYPES[value.type]
    if "mask" in value.name or dtype is np.bool_:
        mask = np.ones(shape, dtype)
        if padded and mask.ndim == 2 and "mask" in value.name:
            mask[0, : mask.shape[1] // 2] = 0
        return mask
    if "float" in value.type or value.type == "tensor(double)":
        return np.asarray(random.standard_normal(shape), dtype)
    if "position" in value.name and shape:
        return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
    return random.integers(0, max(bounds.get(value.name, 2), 1), shape).astype(dtype)
