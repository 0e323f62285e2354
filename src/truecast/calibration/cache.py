"""The scales of a quantized key/value cache, from what a model's own keys and values are on text.

Data flow: texts → tokens → keys and values of every layer → the reach of every channel → a scale.

Scales are static, so text that reaches further than the calibration's is clipped. With 8 bits there is room for it:
`FRACTIONS` has one number, above 1. With 4 bits there is not: the number is chosen, channel by channel, that makes the
least squared error, rare values clipped included. Two things hold for both:

- A position far beyond the calibration's may turn all of two channels that rotate together into either of them. Their
  reach is their common radius, and what they may be is tried at angles all around.
- No reach is smaller than a part of the tensor's largest (`LEAST`): a channel that slept may wake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from truecast.calibration.texts import calibration_codec
from truecast.checkpoint.model import Array
from truecast.runtime.cache import SharedCache
from truecast.runtime.decoder import Decoder
from truecast.states import PARTS, StateTensor
from truecast.weights.cache import CacheScales, cached_attention, rotation_partners

LARGEST: Mapping[int, int] = {8: 127, 4: 7}
"""The largest code of that many bits; the smallest is one further from zero."""
FRACTIONS: Mapping[int, tuple[float, ...]] = {8: (1.5,), 4: tuple(0.88**power for power in range(13))}
"""The largest code's value in parts of the reach, by bits. 1.5: of 1, 1.25, 1.5, 2 and 3 the one with the least KL on
other text in Gemma 3 270M (5e-3, 1.8e-3, 1.6e-3, 2.2e-3 and 5.3e-3 nats). From 1 down to 0.2, because searching halves
the KL of 4 bits there (0.37 to 0.2 nats)."""
LEAST = 2.0**-8
"""The smallest reach in parts of the tensor's largest."""
SMALLEST = 1e-6
"""A reach for tensors that are nothing but zeros."""
ROW_TOKENS, MOST_TOKENS = 512, 4096
"""Tokens of one run, and of all."""
GOLDEN_ANGLE = 2.399963
"""Radians; turned by its multiples, no two tokens see the same angle, and all angles are seen alike."""

Progress = Callable[[int, int], None]
KeysAndValues = Callable[[Sequence[int]], Iterable[tuple[str, Array]]]
"""What a model's cache holds behind some tokens, float32 [heads, length, width], by the name of the past."""


def token_rows(folder: Path, texts: Sequence[str], vocabulary: int | None, context: int | None) -> list[list[int]]:
    """Tokens of every text, each begun as the tokenizer begins a text; raises InputError when there is no tokenizer."""
    codec, left, rows = calibration_codec(folder), MOST_TOKENS, []
    for text in texts:
        length = min(ROW_TOKENS, context or ROW_TOKENS, left)
        row = [token for token in codec.encode(text)[:length] if vocabulary is None or token < vocabulary]
        left -= len(row)
        rows += [row] if row else []
    return rows


def graph_keys_and_values(decoder: Decoder, row: Sequence[int]) -> Iterator[tuple[str, Array]]:
    """Every cache tensor [heads, length, width] behind one text, float32, with the name of its past."""
    cache = decoder.new_cache(1, len(row))
    assert isinstance(cache, SharedCache)
    decoder.step(cache, np.array([row], np.int64))
    for name, array in cache.held().items():
        yield name, array[0].astype(np.float32)


def calibrated_scales(
    run: KeysAndValues,
    model: ir.Model,
    rows: Sequence[Sequence[int]],
    bits: int,
    progress: Progress | None = None,
) -> dict[int, CacheScales]:
    """The scales of every layer of a graph, from what `run` makes of some rows of tokens."""
    partners = {layer: rotation_partners(node) for layer, node in cached_attention(model).items()}
    fractions, done = FRACTIONS[bits], 0
    total = len(rows) * (1 + (len(fractions) > 1))
    reach: dict[str, Array] = {}
    errors: dict[str, Array] = {}
    for measure in (_widen, _try)[: total // max(1, len(rows))]:
        for row in rows:
            for name, array in run(row):
                pairs = _pairs(name, partners, array.shape[-1])
                measure(name, array, pairs, reach, errors, bits)
            done += 1
            if progress:
                progress(done, total)
    chosen = {name: scale_of(reach[name], bits, errors.get(name)) for name in reach}
    layers = sorted({tensor.layer for name in chosen if (tensor := StateTensor.named(name)) is not None})
    parts = {n: [chosen[StateTensor(n, part).past] for part in PARTS] for n in layers}
    return {n: CacheScales(key, value) for n, (key, value) in parts.items()}


def _pairs(name: str, partners: Mapping[int, Array | None], width: int) -> Array | None:
    """The channel that each channel is rotated with; values are not rotated."""
    tensor = StateTensor.named(name)
    assert tensor is not None
    return partners[tensor.layer] if tensor.part == "key" else np.arange(width)


def _widen(
    name: str, array: Array, pairs: Array | None, reach: dict[str, Array], errors: dict[str, Array], bits: int
) -> None:
    reach[name] = np.maximum(reach.get(name, np.float32(0)), reaches(array, pairs))


def _try(
    name: str, array: Array, pairs: Array | None, reach: dict[str, Array], errors: dict[str, Array], bits: int
) -> None:
    """Adds the squared errors [fractions, heads, width] that each fraction makes."""
    values = array if pairs is None else turned_around(array, pairs)
    made = [squared_error(values, scale, bits) for scale in _candidates(reach[name], bits)]
    errors[name] = errors.get(name, 0) + np.stack(made)


def squared_error(values: Array, scale: Array, bits: int) -> Array:
    """The sum [heads, width] of the squared errors of values [heads, length, width] in codes of a scale."""
    wide = scale[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):  # a proof may be shown a scale of 0
        codes = np.clip(np.rint(values / wide), -LARGEST[bits] - 1, LARGEST[bits])
    error: Array = np.square(codes * wide - values).sum(1, dtype=np.float64)
    return error


def reaches(array: Array, pairs: Array | None) -> Array:
    """How far keys or values [heads, length, width] reach at any position: [heads, width].

    `pairs` says which channel each is rotated with. Where that is not known, any two may be: their radius is at most
    √2 of the head's largest.
    """
    if pairs is None:
        largest = np.sqrt(2) * np.abs(array).max((1, 2))
        return np.repeat(largest[:, None], array.shape[-1], 1).astype(np.float32)
    alone = pairs == np.arange(len(pairs))
    reach: Array = np.where(alone, np.abs(array), np.hypot(array, array[..., pairs])).max(1)
    return reach


def turned_around(array: Array, pairs: Array) -> Array:
    """The array with every pair of channels turned, each token by an angle of its own."""
    channels = np.arange(len(pairs))
    angles = (GOLDEN_ANGLE * np.arange(array.shape[1], dtype=np.float32))[:, None]
    sign = np.sign(channels - pairs).astype(np.float32)
    turned: Array = np.where(sign == 0, array, array * np.cos(angles) + sign * array[..., pairs] * np.sin(angles))
    return turned


def _candidates(reach: Array, bits: int) -> Iterator[Array]:
    whole = np.maximum(reach, max(LEAST * float(reach.max()), SMALLEST)) / LARGEST[bits]
    for fraction in FRACTIONS[bits]:
        yield (fraction * whole).astype(np.float32)


def scale_of(reach: Array, bits: int, errors: Array | None = None) -> Array:
    """float32 [heads, width], by the fraction with the least error where there are several."""
    candidates = np.stack(list(_candidates(reach, bits)))
    best = np.zeros(reach.shape, np.int64) if errors is None else errors.argmin(0)
    chosen: Array = np.take_along_axis(candidates, best[None], 0)[0]
    return chosen
