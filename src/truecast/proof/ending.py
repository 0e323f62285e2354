"""Tier 2, the end of the context: what no sequence that a proof can afford reaches.

The keys and values of a short text, repeated until they fill the context but for the last few positions, are given to
the author's cache and to the graph's alike; then both run these positions, several at once and a single one behind
them. It is no text, but it is an input that both must agree on: every position id, mask and key of the whole context is
there.

Where such a past takes more memory than `SHARE` of what is free, the same runs stand behind the short text itself, with
position ids at the end of the context; a graph that counts its positions by itself takes none. The check says which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import psutil
import torch

from truecast.artifact import Check
from truecast.proof.author_states import AuthorStates, fill, states_of
from truecast.proof.measures import largest_gap
from truecast.proof.operators import Array
from truecast.proof.parity import NOISE_FACTOR, RELATIVE, SPARE, TIER, Subject
from truecast.proof.points import SEED
from truecast.proof.reference import Reference
from truecast.proof.sessions import RUN_ERRORS
from truecast.proof.tally import Worst, broken, check, reason
from truecast.runtime.cache import KeyValueCache, SharedCache, cache_tensors
from truecast.runtime.decoder import Decoder
from truecast.states import PARTS, StateTensor

TEXT = 64
"""Tokens whose keys and values are repeated."""
PIECES = (3, 1)
"""New tokens of the runs at the end."""
SHARE = 0.25
"""Of the free memory that the keys and values of a whole context may take; both sides hold them, one after the other,
and the author's code copies those of a layer at every step."""


@dataclass(frozen=True)
class _Ending:
    """The runs at the end: `ids` [1, total] are their tokens, `held` positions come before them, `first` is the
    position id of the first new token, and `states` are those behind the text, of which what grows is repeated."""

    ids: Array
    held: int
    first: int
    states: AuthorStates

    def runs(self) -> Iterator[tuple[Array, Array, Array]]:
        """Token ids, mask and position ids of each run."""
        start = 0
        for new in PIECES:
            stop = start + new
            mask = np.ones((1, self.held + stop), np.int64)
            yield self.ids[:, start:stop], mask, np.arange(self.first + start, self.first + stop)[None]
            start = stop

    def filled(self, state: StateTensor) -> torch.Tensor:
        """Keys or values [1, heads, held, width]; a state of another kind as it is behind the text."""
        tensor = self.states[state]
        if state.part not in PARTS:
            return tensor
        times = -(-self.held // tensor.shape[2])
        return tensor.repeat(1, 1, times, 1)[:, :, : self.held]


def ending_checks(
    reference: Reference, subject: Subject, context: int | None, vocabulary: int, far: int
) -> list[Check]:
    """One check, where the context goes on behind the `far` positions that were run whole."""
    if context is None or context <= far:
        return []
    name = f"{subject.name} at the end of the context"
    numbers = np.random.default_rng(SEED)
    ids = numbers.integers(0, vocabulary, (1, TEXT + sum(PIECES)), dtype=np.int64)
    states = _behind(reference, ids[:, :TEXT])
    if not any(state.part in PARTS for state in states):  # nothing that could come to an end
        return []
    whole = _fits(states, context)
    if not whole and not subject.decoder.takes_positions:
        return []
    first = context - sum(PIECES)
    ending = _Ending(ids[:, TEXT:], first if whole else TEXT, first, states)
    what = f"behind {first} repeated keys" if whole else f"with position ids from {first} behind {TEXT} tokens"
    try:
        return [_compared(reference, subject, ending, name, f"{sum(PIECES)} positions {what}")]
    except RUN_ERRORS as error:
        return [broken(TIER, name, f"{what}: {reason(error)}")]


def ending_note(checks: list[Check], context: int | None, far: int) -> list[str]:
    """What was run at the end of a context that was not run whole."""
    if context is None or context <= far:
        return []
    said = (
        f"{checks[0].detail.partition(';')[0]} stand for the end" if checks else "its rotary tables were compared only"
    )
    return [f"Of the context of {context}, the first {far} positions were run as one text; {said}."]


def _compared(reference: Reference, subject: Subject, ending: _Ending, name: str, what: str) -> Check:
    wanted = list(_author(reference, ending))
    worst = Worst()
    for number, got in enumerate(_graph(subject.decoder, ending)):
        gap = largest_gap(got, wanted[number], np.ones(got.shape[:2], np.bool_))
        scale, limit = gap.scale or 1.0, subject.limit or RELATIVE
        if subject.tight and gap.finite and not gap.error <= RELATIVE * scale:
            limit = max(RELATIVE, NOISE_FACTOR * _noise(reference, ending, wanted, number) / scale)
        worst.add(gap.error / scale if gap.finite else np.nan, limit, f"run {number + 1}")
    detail = f"{what}; worst at {worst.where}"
    return check(TIER, name, worst.value, worst.limit, "of the largest logit", detail)


def _noise(reference: Reference, ending: _Ending, wanted: list[Array], number: int) -> float:
    """|r32 - r64| of one run."""
    with reference.in_float64():
        wide = list(_author(reference, ending, torch.float64))
    return largest_gap(wanted[number], wide[number], np.ones(wide[number].shape[:2], np.bool_)).error


def _behind(reference: Reference, ids: Array) -> AuthorStates:
    """The author's states behind a text."""
    reference.reset()
    cache = reference.new_cache()
    reference.step(cache, ids, np.ones_like(ids), np.arange(ids.shape[1])[None], 1)
    return states_of(cache)


def _fits(states: AuthorStates, context: int) -> bool:
    widths = sum(held.shape[1] * held.shape[3] for state, held in states.items() if state.part in PARTS)
    return bool(4 * widths * context <= SHARE * psutil.virtual_memory().available)


def _author(reference: Reference, ending: _Ending, dtype: torch.dtype = torch.float32) -> Iterator[Array]:
    reference.reset()
    cache = reference.new_cache()
    fill(cache, {state: ending.filled(state).to(dtype) for state in ending.states})
    for ids, mask, positions in ending.runs():
        yield reference.step(cache, ids, mask, positions)


def _graph(decoder: Decoder, ending: _Ending) -> Iterator[Array]:
    cache = decoder.new_cache(1, ending.held + sum(PIECES) + SPARE)
    kept = _fill(decoder, cache, ending)
    for ids, mask, positions in ending.runs():
        yield decoder.step(cache, ids, mask, keep=0, position_ids=positions)
    del kept


def _fill(decoder: Decoder, cache: KeyValueCache, ending: _Ending) -> list[ort.OrtValue]:
    """Puts the repeated keys and values into an empty cache; returns what must stay alive while it is used."""
    cache.length = ending.held
    views = cache.held() if isinstance(cache, SharedCache) else {}
    kept = []
    for tensor in cache_tensors(decoder.info):
        state = StateTensor(tensor.layer, tensor.part)
        if tensor.past in views:
            _repeat(ending.states[state].numpy(), views[tensor.past])
            continue
        array = ending.filled(state).numpy()
        kept.append(ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array.astype(tensor.dtype))))
        cache.binding.bind_ortvalue_input(tensor.past, kept[-1])
    return kept


def _repeat(part: Array, whole: Array) -> None:
    """Fills `whole` [1, heads, held, width] with `part` [1, heads, length, width], in place."""
    length = part.shape[2]
    for start in range(0, whole.shape[2], length):
        piece = whole[:, :, start : start + length]
        piece[:] = part[:, :, : piece.shape[2]]
