"""The key/value cache of one batch, bound to a session once and reused by every step.

Its elements are what the graph declares: floats, or the codes of a quantized cache (int8; uint8 with two codes of 4
bits each, whose width is then half of a head's). Nothing here computes with them.

Two kinds, because graphs come in two kinds. `SharedCache`: past and present of a layer are one buffer that the graph
writes in place; it has spare capacity and grows by doubling. `ConcatenatedCache`: the graph returns a new, longer
tensor at every step, which becomes the next step's past. Both own the IOBinding that carries them, so that a step binds
only what changes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from truecast.artifact import GraphInfo, TensorInfo
from truecast.errors import InputError
from truecast.states import StateTensor, is_past

LOGITS = "logits"
HEADS_AXIS, LENGTH_AXIS, WIDTH_AXIS = 1, 2, 3
NO_LIMIT = sys.maxsize
DEFAULT_CAPACITY = 256
"""Positions a cache starts with when nothing is known of what will come; one doubling costs one copy of the cache."""


@dataclass(frozen=True)
class CacheTensor(StateTensor):
    """One key or value tensor; elements in the shape [batch, heads, length, width]."""

    heads: int
    width: int
    dtype: np.dtype[Any]

    def empty(self, batch: int, length: int) -> NDArray[Any]:
        """Zeros of shape [batch, heads, length, width]; untouched pages of it cost no memory."""
        return np.zeros((batch, self.heads, length, self.width), self.dtype)


def cache_tensors(info: GraphInfo) -> tuple[CacheTensor, ...]:
    """The cache tensors that the graph declares, in the order of its inputs; raises InputError when one has no pair."""
    outputs = {tensor.name for tensor in info.outputs}
    tensors = tuple(_cache_tensor(tensor) for tensor in info.inputs if is_past(tensor.name))
    for tensor in tensors:
        if tensor.present not in outputs:
            raise InputError(f"The graph has the input {tensor.past} but no output {tensor.present}; export it again.")
    return tensors


def _cache_tensor(tensor: TensorInfo) -> CacheTensor:
    heads, width = tensor.shape[HEADS_AXIS], tensor.shape[WIDTH_AXIS]
    state = StateTensor.named(tensor.name)
    if state is None or not isinstance(heads, int) or not isinstance(width, int):
        raise InputError(
            f"Input {tensor.name} of the graph has no fixed heads and width ({tensor.shape}); export it again."
        )
    return CacheTensor(state.layer, state.part, heads, width, np.dtype(tensor.dtype))


class KeyValueCache(Protocol):
    """What the decoder needs of a cache; `length` counts the positions held, padding included.

    The output `logits` is the first one bound, so it is number 0 of the binding's outputs.
    """

    batch: int
    length: int
    binding: ort.IOBinding

    def prepare(self, new: int) -> None:
        """Makes room for `new` more positions."""

    def advance(self, new: int) -> None:
        """Takes in that a run has added `new` positions."""


class SharedCache:
    """One buffer per key and value tensor, written in place: [batch, heads, capacity, width].

    `limit` is the largest capacity (the context length), None when there is none.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        tensors: tuple[CacheTensor, ...],
        batch: int,
        capacity: int | None = None,
        limit: int | None = None,
    ) -> None:
        self.batch, self.length, self.limit = batch, 0, limit
        self.capacity = min(capacity or DEFAULT_CAPACITY, limit or NO_LIMIT)
        self.binding = session.io_binding()
        self.binding.bind_output(LOGITS, "cpu")
        self._tensors = tensors
        self._buffers = [tensor.empty(batch, self.capacity) for tensor in tensors]
        for index in range(len(tensors)):
            self._bind(index)

    def prepare(self, new: int) -> None:
        """Grows the buffers when `new` more positions do not fit; raises InputError past the limit."""
        needed = self.length + new
        if needed <= self.capacity:
            return
        require_context(needed, self.limit)
        self.capacity = min(max(needed, 2 * self.capacity), self.limit or NO_LIMIT)
        for index, tensor in enumerate(self._tensors):
            grown = tensor.empty(self.batch, self.capacity)
            grown[:, :, : self.length] = self._buffers[index][:, :, : self.length]
            self._buffers[index] = grown
            self._bind(index)

    def advance(self, new: int) -> None:
        """Counts `new` positions that the graph has written."""
        self.length += new

    def held(self) -> dict[str, NDArray[Any]]:
        """Views [batch, heads, length, width] of what is held, by the name of the past; valid until it grows."""
        pairs = zip(self._tensors, self._buffers, strict=True)
        return {tensor.past: buffer[:, :, : self.length] for tensor, buffer in pairs}

    def copy_row(self, row: int, source: KeyValueCache, offset: int = 0) -> None:
        """Copies the only row of `source` (of the same kind) to positions [offset, offset + its length) of `row`.

        `length` becomes the end of the longest row copied so far.
        """
        if not isinstance(source, SharedCache):
            raise TypeError("a row can be copied from a cache of the same kind only")
        end = offset + source.length
        self.prepare(max(0, end - self.length))
        for mine, theirs in zip(self._buffers, source._buffers, strict=True):
            mine[row, :, offset:end] = theirs[0, :, : source.length]
        self.length = max(self.length, end)

    def _bind(self, index: int) -> None:
        tensor = self._tensors[index]
        value = ort.OrtValue.ortvalue_from_numpy(self._buffers[index])
        self.binding.bind_ortvalue_input(tensor.past, value)
        self.binding.bind_ortvalue_output(tensor.present, value)


class ConcatenatedCache:
    """Tensors of exactly `length` positions, replaced by the graph's outputs at every step."""

    def __init__(
        self,
        session: ort.InferenceSession,
        tensors: tuple[CacheTensor, ...],
        batch: int,
        limit: int | None = None,
    ) -> None:
        self.batch, self.length, self.limit = batch, 0, limit
        self.binding = session.io_binding()
        self.binding.bind_output(LOGITS, "cpu")
        self._tensors = tensors
        for tensor in tensors:
            self.binding.bind_ortvalue_input(tensor.past, ort.OrtValue.ortvalue_from_numpy(tensor.empty(batch, 0)))
            self.binding.bind_output(tensor.present, "cpu")

    def prepare(self, new: int) -> None:
        """Raises InputError when `new` more positions pass the context length."""
        require_context(self.length + new, self.limit)

    def advance(self, new: int) -> None:
        """Makes the presents of the last run the pasts of the next; unbound, so that the next run allocates anew."""
        outputs = self.binding.get_outputs_as_ortvaluevector()
        presents = [ort.OrtValue(outputs[index + 1]) for index in range(len(self._tensors))]
        for tensor, present in zip(self._tensors, presents, strict=True):
            self.binding.bind_ortvalue_input(tensor.past, present)
            self.binding.bind_output(tensor.present, "cpu")
        self.length += new


def require_context(needed: int, limit: int | None) -> None:
    """Raises InputError when `needed` positions pass the context length."""
    if limit is not None and needed > limit:
        raise InputError(f"The text has {needed} tokens, more than the model's context of {limit}; shorten it.")
