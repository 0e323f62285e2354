"""Made-up inputs for a graph that nobody described: sizes for its free axes, and values that most models accept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol

import ml_dtypes
import numpy as np

BATCH, LENGTH, PAST = 2, 7, 0
"""Sizes of the first trial: a batch above 1, for which rotary operators and squeezes differ, and an odd length."""
SEED = 7
MOST_ELEMENTS = 1 << 27
"""Elements of an input that is still made up: 512 MiB of float32."""
RATE = 16000
"""Samples a second, which most models of speech are for."""

DTYPES: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bfloat16)": ml_dtypes.bfloat16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint64)": np.uint64,
    "tensor(uint32)": np.uint32,
    "tensor(uint16)": np.uint16,
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
    """Sizes of the axes that are free: rows, new tokens or frames, pixels (height and width), samples of sound.

    `positive` makes every float positive, for models that take a root or a logarithm of what they are fed.
    """

    batch: int = BATCH
    length: int = LENGTH
    pixels: tuple[int, int] = (64, 64)
    samples: int = 512
    positive: bool = False


FIRST_TRIES = tuple(
    Sizes(batch, length, pixels, samples)
    for length, pixels, samples in (
        (LENGTH, (64, 64), 512),
        (16, (48, 320), 1536),
        (64, (224, 224), 4096),
        (100, (640, 640), RATE),
        (1, (32, 32), 64),
    )
    for batch in (BATCH, 1)
)
"""Sizes that are tried in turn until the model takes some; convolutions reduce short ones to nothing."""


def sizes_around(base: Sizes) -> tuple[Sizes, ...]:
    """Sizes near those that worked, one changed at a time."""
    height, width = base.pixels
    return (
        replace(base, batch=1),
        replace(base, batch=2),
        replace(base, batch=3),
        replace(base, length=1),
        replace(base, length=base.length + 10),
        replace(base, pixels=(height * 3 // 2, width * 3 // 2)),
        replace(base, samples=base.samples * 3 // 2),
    )


def why_not(inputs: Sequence[Input], sizes: Sizes) -> str | None:
    """Why no inputs can be made up; None when they can."""
    for value in inputs:
        if value.type not in DTYPES:
            return f"{value.name} is a {value.type}"
    shapes = feed_shapes(inputs, sizes)
    return next((f"{name} has the shape {list(s)}" for name, s in shapes.items() if prod(s) > MOST_ELEMENTS), None)


def feed_shapes(inputs: Sequence[Input], sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The shape of every input; one size for each name of an axis."""
    named = named_sizes(inputs, sizes)
    return {value.name: _shape(value, sizes, named) for value in inputs}


def named_sizes(inputs: Sequence[Input], sizes: Sizes) -> dict[str, int]:
    """The size of each name of an axis; integer inputs, which are tokens, decide before float ones."""
    named: dict[str, int] = {}
    for value in sorted(inputs, key=lambda value: "float" in value.type):
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, str):
                named.setdefault(dim, _size(value, axis, dim, sizes))
    return named


def make_feeds(
    inputs: Sequence[Input], sizes: Sizes, bounds: Mapping[str, int], padded: bool = False
) -> dict[str, np.ndarray]:
    """Values for every input: ids below their table's rows (`bounds`), masks of ones, positions that count up.

    Lengths are those of the longest free axis, rates 16000, factors one. `padded` masks the first half of the first
    row, as padding on the left does.
    """
    random, shapes = np.random.default_rng(SEED), feed_shapes(inputs, sizes)
    longest = max((s for v in inputs for d, s in _beside_rows(v, shapes[v.name]) if not isinstance(d, int)), default=1)
    made = {}
    for value in inputs:
        array = _special(value, shapes[value.name], sizes, longest)
        made[value.name] = _ordinary(value, shapes[value.name], sizes, bounds, random) if array is None else array
        if padded and "mask" in value.name and array is not None and array.ndim == 2:
            made[value.name][0, : array.shape[1] // 2] = 0
    return made


def _beside_rows(value: Input, shape: tuple[int, ...]) -> list[tuple[int | str | None, int]]:
    """The axes behind the first with their declared and made-up sizes."""
    return list(zip(value.shape, shape, strict=True))[1:]


def _shape(value: Input, sizes: Sizes, named: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(
        named[dim] if isinstance(dim, str) else _size(value, axis, dim, sizes) for axis, dim in enumerate(value.shape)
    )


def _size(value: Input, axis: int, dim: int | str | None, sizes: Sizes) -> int:
    if isinstance(dim, int):
        return dim
    rank, name = len(value.shape), value.name.lower()
    if axis == 0 or (axis == 1 and rank == 3 and isinstance(value.shape[0], int) and _words(name) & STATES):
        return sizes.batch
    if "past" in name or "cache" in name:
        return PAST
    if rank == 4 and ("float" in value.type or value.type == "tensor(uint8)"):
        return sizes.pixels[axis % 2]
    return sizes.samples if "float" in value.type and rank == 2 else sizes.length


STATES = {"h", "c", "h0", "c0", "hn", "cn", "state", "states", "hidden"}
RATES = {"sr", "fs", "rate", "samplerate"}
LENGTHS = ("len", "lens")
FACTORS = {"scale", "scales", "speed", "temperature", "factor", "ratio", "guidance", "threshold", "alpha", "beta"}
EXTENTS = {"size", "sizes", "shape", "shapes"}


def _words(name: str) -> set[str]:
    """The words of an input's name: input_lengths, inputLengths and inputlengths hold lengths."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1_\2", name)
    return set(re.findall(r"[a-z]+\d?|\d+", spaced.lower()))


def _special(value: Input, shape: tuple[int, ...], sizes: Sizes, longest: int) -> np.ndarray | None:
    """Values that the input's name asks for; None when it asks for nothing."""
    dtype, words, name = DTYPES[value.type], _words(value.name), value.name.lower()
    whole = np.dtype(dtype).kind in "iu"
    if "mask" in name:
        return np.ones(shape, dtype)
    if dtype is np.bool_:
        return np.full(shape, "cache" not in name)
    if words & RATES or "sample_rate" in name:
        return np.full(shape, RATE, dtype)
    if (
        whole
        and ("length" in name or any(word.endswith(LENGTHS) for word in words))
        and prod(shape) <= max(sizes.batch, 1)
    ):
        return np.full(shape, longest, dtype)
    if (words & FACTORS or "factor" in name) and not whole and prod(shape) <= 2 * sizes.batch:
        return np.ones(shape, dtype)
    if words & EXTENTS and shape and shape[-1] == 2 and len(shape) <= 2:
        return np.broadcast_to(np.asarray(sizes.pixels, dtype), shape).copy()
    if "position" in name and shape and whole:
        return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
    return None


def _ordinary(
    value: Input, shape: tuple[int, ...], sizes: Sizes, bounds: Mapping[str, int], random: np.random.Generator
) -> np.ndarray:
    """Normal floats; whole numbers below the rows of their table, or 0 and 1, which may point at rows of an input."""
    dtype = DTYPES[value.type]
    if "float" in value.type or dtype is np.float64:
        made = random.standard_normal(shape)
        return np.asarray(np.abs(made) if sizes.positive else made, dtype)
    rows = min(2, sizes.batch, sizes.length)
    return random.integers(0, max(bounds.get(value.name, rows), 1), shape).astype(dtype)
