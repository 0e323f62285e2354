"""Generating tokens for a batch of prompts of unequal length.

How a batch runs depends on the padding contract of its graph, because every row of a cache shares one length:

| contract | prefill | decode |
|---|---|---|
| `any` | one run, padded on the left | a mask with zeros in front, one more column per step |
| `right` | every row alone, gathered into one cache | a mask of ones up to each row's own length, zeros behind |

Rows are also prefilled alone when a prompt is longer than `prefill_chunk`: ONNX Runtime's GroupQueryAttention takes
several new tokens after a past for one row only. A graph with contract `right` whose cache is not in place cannot mix
lengths at all; its rows are generated one after the other.

So are rows that may grow past the length behind which longrope takes other factors (`restarts_behind`): a longer prompt
is one run, and a text that reaches it is computed again, as transformers' `generate` does for Phi-3.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from truecast.errors import InputError
from truecast.runtime.cache import KeyValueCache, SharedCache
from truecast.runtime.decoder import Decoder, Logits
from truecast.runtime.loop import DecodeLoop
from truecast.runtime.sampling import Sampler, Sampling

Ids = NDArray[np.int64]
RIGHT = "right"
DEFAULT_MAX_NEW_TOKENS = 256
PREFILL_CHUNK = 512
"""Tokens per run of a long prefill. Bounds the memory of activations: behind 1500 tokens of the 0.5 B shape 666 MB were
held, 811 MB after one run of all; 128, 256, 512, 1500 per run gave 129, 149, 146, 135 tokens/s (1 thread, ± 10 %)."""
ROOM_AHEAD = 512
"""Positions beyond the prompt that a cache is made for at once; behind them it doubles."""


class Finish(StrEnum):
    """Why a row ended."""

    END = "end"
    """The model gave an end-of-sequence token; it is the row's last token."""
    LENGTH = "length"
    """`max_new_tokens` were generated, or the longest row of the batch filled the context."""


@dataclass(frozen=True)
class GenerationOptions:
    """What to generate. `eos_token_ids` None takes those of the manifest; an empty tuple never ends a row early."""

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    sampling: Sampling = field(default_factory=Sampling)
    eos_token_ids: tuple[int, ...] | None = None
    prefill_chunk: int = PREFILL_CHUNK

    def __post_init__(self) -> None:
        """Raises InputError on a count below 1."""
        for name, value in (("max_new_tokens", self.max_new_tokens), ("prefill_chunk", self.prefill_chunk)):
            if value < 1:
                raise InputError(f"{name} is {value}; it must be 1 or more.")


@dataclass(frozen=True)
class Step:
    """One step of a batch: `tokens[row]` is the new token, None in a row that had ended; `finish[row]` as it ends."""

    tokens: tuple[int | None, ...]
    finish: tuple[Finish | None, ...]


def generate(
    decoder: Decoder, prompts: Sequence[Sequence[int]], options: GenerationOptions | None = None
) -> Iterator[Step]:
    """Yields one Step per generated position until every row has ended; the rows are the prompts, in order.

    The results of a row do not depend on the other rows. Raises InputError, before anything runs, for an empty prompt,
    a token id outside the vocabulary, or a prompt longer than the context.
    """
    options = options or GenerationOptions()
    rows = [np.asarray(prompt, np.int64).reshape(-1) for prompt in prompts]
    _check_prompts(rows, decoder)
    unequal = len({len(row) for row in rows}) > 1
    behind = decoder.info.restarts_behind
    grows = behind is not None and max(map(len, rows)) + options.max_new_tokens > behind
    if grows or (unequal and decoder.info.padding == RIGHT and not decoder.in_place):
        return _one_by_one(decoder, rows, options)
    return _together(decoder, rows, options)


def _check_prompts(rows: list[Ids], decoder: Decoder) -> None:
    context, vocabulary = decoder.info.context_length, decoder.info.vocab_size
    if not rows:
        raise InputError("There is no prompt; give at least one.")
    for index, row in enumerate(rows):
        if not len(row):
            raise InputError(f"Prompt {index} has no tokens; give it some text.")
        if context is not None and len(row) > context:
            raise InputError(
                f"Prompt {index} has {len(row)} tokens, above the model's context of {context}; shorten it."
            )
        if row.min() < 0 or (vocabulary is not None and row.max() >= vocabulary):
            raise InputError(
                f"Prompt {index} has token ids from {row.min()} to {row.max()}, outside the model's vocabulary of "
                f"{vocabulary}; use the artifact's own tokenizer."
            )


def _one_by_one(decoder: Decoder, rows: list[Ids], options: GenerationOptions) -> Iterator[Step]:
    for index, row in enumerate(rows):
        for step in _together(decoder, [row], options, index):
            before, behind = (None,) * index, (None,) * (len(rows) - index - 1)
            yield Step((*before, *step.tokens, *behind), (*before, *step.finish, *behind))


def _together(decoder: Decoder, rows: list[Ids], options: GenerationOptions, first: int = 0) -> Iterator[Step]:
    batch = _Batch(decoder, rows, options)
    sampler = Sampler(options.sampling, len(rows), first)
    ends = frozenset(decoder.info.eos_token_ids if options.eos_token_ids is None else options.eos_token_ids)
    last = options.max_new_tokens
    if decoder.info.context_length is not None:
        last = min(last, decoder.info.context_length - batch.length + 1)
    running = [True] * len(rows)
    logits, loop = batch.prefill(), None
    for count in range(1, last + 1):
        tokens = sampler.choose(logits)
        step = _step(tokens, running, ends, count == last)
        running = [on and finish is None for on, finish in zip(running, step.finish, strict=True)]
        yield step
        if not any(running):
            return
        if (texts := batch.restarted(tokens)) is not None:
            batch = _Batch(decoder, texts, options)
            logits, loop = batch.prefill(), None
            continue
        loop = loop or batch.loop(logits.shape[1])
        logits = loop.run(tokens)


def _step(tokens: list[int], running: list[bool], ends: Container[int], final: bool) -> Step:
    otherwise = Finish.LENGTH if final else None
    pairs = list(zip(tokens, running, strict=True))
    values = tuple(token if on else None for token, on in pairs)
    return Step(values, tuple((Finish.END if token in ends else otherwise) if on else None for token, on in pairs))


class _Batch:
    """The rows of one run: their cache, and the mask that tells each row's tokens from its padding."""

    def __init__(self, decoder: Decoder, rows: list[Ids], options: GenerationOptions) -> None:
        self.decoder, self.rows, self.chunk = decoder, rows, options.prefill_chunk
        self.lengths = np.array([len(row) for row in rows], np.int64)
        self.length = int(self.lengths.max())
        self.behind, self.new = decoder.info.restarts_behind, [list[int]() for _ in rows]
        if self.behind is not None and self.length > self.behind:
            self.chunk = self.length  # in pieces, the first ones would get the factors of short texts
        self.capacity = self.length + min(options.max_new_tokens, ROOM_AHEAD)
        self.cache: KeyValueCache = decoder.new_cache(len(rows), self.capacity)
        self._padded = bool((self.lengths < self.length).any())
        self._right = decoder.info.padding == RIGHT

    def prefill(self) -> Logits:
        """Runs the prompts; returns the logits [rows, vocab] behind each prompt's last token."""
        alone = (self._padded and self._right) or self.length > self.chunk
        if len(self.rows) > 1 and alone and isinstance(self.cache, SharedCache):
            return self._prefill_alone(self.cache)
        if len(self.rows) == 1:
            return self._prefill_row(self.cache, self.rows[0])
        ids = np.zeros((len(self.rows), self.length), np.int64)
        for target, row in zip(ids, self.rows, strict=True):
            target[self.length - len(row) :] = row
        return self.decoder.step(self.cache, ids, self._mask(self.length))[:, -1]

    def restarted(self, tokens: list[int]) -> list[Ids] | None:
        """Takes a token for each row; the whole texts, where these are to be computed again before the next one."""
        for row, token in zip(self.new, tokens, strict=True):
            row.append(token)
        if self.behind is None or self.length + len(self.new[0]) != self.behind + 1:
            return None
        return [np.concatenate([old, new]) for old, new in zip(self.rows, self.new, strict=True)]

    def loop(self, vocabulary: int) -> DecodeLoop:
        """The steps that follow the prefill."""
        return DecodeLoop(self.decoder, self.cache, self.lengths, vocabulary, self._mask)

    def _prefill_alone(self, cache: SharedCache) -> Logits:
        logits = []
        for index, row in enumerate(self.rows):
            single = self.decoder.new_cache(1, len(row))
            logits.append(self._prefill_row(single, row))
            offset = 0 if self._right else self.length - len(row)
            cache.copy_row(index, single, offset)
        return np.concatenate(logits)

    def _prefill_row(self, cache: KeyValueCache, row: Ids) -> Logits:
        for start in range(0, len(row), self.chunk):
            logits = self.decoder.step(cache, row[None, start : start + self.chunk])
        return logits[:, -1]

    def _mask(self, total: int) -> Ids | None:
        """The mask [rows, total]: padding in front, or for the contract `right` behind; None when there is none."""
        if not self._padded:
            return None
        column = np.arange(total)
        pads = (self.length - self.lengths)[:, None]
        return np.asarray(column < total - pads if self._right else column >= pads, np.int64)
