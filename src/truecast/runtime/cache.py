"""The states of one batch (keys and values, and others), bound to a session once and reused by every step.

Its elements are what the graph declares: floats, or the codes of a quantized cache (int8; uint8 with two codes of 4
bits each, whose width is then half of a head's). Nothing here computes with them.

Two kinds, because graphs come in two kinds. `SharedCache`: keys and values of a layer are one buffer, past and present,
that the graph writes in place; it has spare capacity and grows by doubling. `ConcatenatedCache`: the graph returns a
new, longer tensor at every step, which becomes the next step's past; and so it is with states that do not grow in both.
Both own the IOBinding that carries them, so that a step binds only what changes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from truecast.artifact import GraphInfo, TensorInfo
from truecast.errors import InputError
from truecast.states import PARTS, State, StateTensor, is_past

LOGITS = "logits"
LENGTH_AXIS = 2
"""The axis along which keys and values grow."""
NO_LIMIT = sys.maxsize
DEFAULT_CAPACITY = 256
"""Positions a cache starts with when nothing is known of what will come; one doubling costs one copy of the cache."""


def cache_tensors(info: GraphInfo) -> tuple[State, ...]:
    """The tensors of states, in the order of the graph's inputs; raises InputError when one has no pair."""
    outputs = {tensor.name for tensor in info.outputs}
    tensors = tuple(_cache_tensor(tensor) for tensor in info.inputs if is_past(tensor.name))
    for tensor in tensors:
        if tensor.present not in outputs:
            raise InputError(f"The graph has the input {tensor.past} but no output {tensor.present}; export it again.")
    return tensors


def empty_state(state: State, batch: int, length: int) -> NDArray[Any]:
    """Zeros; untouched pages of it cost no memory."""
    return np.zeros(state.shape(batch, length), state.dtype)


def _cache_tensor(tensor: TensorInfo) -> State:
    state = StateTensor.named(tensor.name)
    sizes = tuple(size if isinstance(size, int) else None for size in tensor.shape[1:])
    free = [axis for axis, size in enumerate(sizes, 1) if size is None]
    if state is None or free != ([LENGTH_AXIS] if state.part in PARTS else []):
        raise InputError(
            f"Input {tensor.name} of the graph has the shape {tensor.shape}, in which more than the batch and the "
            "length of keys and values is free, or its name has no layer; export it again."
        )
    return State(state.layer, state.part, sizes, tensor.dtype)


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


class _Carried:
    """States that a run replaces: its outputs are the next run's inputs; `first` is the number of the first output."""

    def __init__(self, binding: ort.IOBinding, states: Sequence[State], batch: int, first: int) -> None:
        self._binding, self._states, self._first = binding, states, first
        self.values = [ort.OrtValue.ortvalue_from_numpy(empty_state(state, batch, 0)) for state in states]
        self._bind()

    def advance(self) -> None:
        """Makes the outputs of the last run the inputs of the next; unbound, so that the next run allocates anew."""
        if not self._states:
            return
        outputs = self._binding.get_outputs_as_ortvaluevector()
        self.values = [ort.OrtValue(outputs[self._first + index]) for index in range(len(self._states))]
        self._bind()

    def copy_row(self, row: int, source: _Carried) -> None:
        """Takes the only row of `source`."""
        arrays = [np.array(value.numpy()) for value in self.values]
        for mine, theirs in zip(arrays, source.values, strict=True):
            mine[row] = theirs.numpy()[0]
        self.values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays]
        self._bind()

    def _bind(self) -> None:
        for state, value in zip(self._states, self.values, strict=True):
            self._binding.bind_ortvalue_input(state.past, value)
            self._binding.bind_output(state.present, "cpu")


class SharedCache:
    """One buffer per key and value tensor, written in place: [batch, heads, capacity, width]; other states are carried.

    `limit` is the largest capacity (the context length), None when there is none.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        tensors: tuple[State, ...],
        batch: int,
        capacity: int | None = None,
        limit: int | None = None,
    ) -> None:
        self.batch, self.length, self.limit = batch, 0, limit
        self.capacity = min(capacity or DEFAULT_CAPACITY, limit or NO_LIMIT)
        self.binding = session.io_binding()
        self.binding.bind_output(LOGITS, "cpu")
        self._tensors = tuple(tensor for tensor in tensors if tensor.grows)
        self._buffers = [empty_state(tensor, batch, self.capacity) for tensor in self._tensors]
        for index in range(len(self._tensors)):
            self._bind(index)
        others = [tensor for tensor in tensors if not tensor.grows]
        self._carried = _Carried(self.binding, others, batch, 1 + len(self._tensors))

    def prepare(self, new: int) -> None:
        """Grows the buffers when `new` more positions do not fit; raises InputError past the limit."""
        needed = self.length + new
        if needed <= self.capacity:
            return
        require_context(needed, self.limit)
        self.capacity = min(max(needed, 2 * self.capacity), self.limit or NO_LIMIT)
        for index, tensor in enumerate(self._tensors):
            grown = empty_state(tensor, self.batch, self.capacity)
            grown[:, :, : self.length] = self._buffers[index][:, :, : self.length]
            self._buffers[index] = grown
            self._bind(index)

    def advance(self, new: int) -> None:
        """Counts `new` positions that the graph has written."""
        self._carried.advance()
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
        self._carried.copy_row(row, source._carried)
        self.length = max(self.length, end)

    def _bind(self, index: int) -> None:
        tensor = self._tensors[index]
        value = ort.OrtValue.ortvalue_from_numpy(self._buffers[index])
        self.binding.bind_ortvalue_input(tensor.past, value)
        self.binding.bind_ortvalue_output(tensor.present, value)


class ConcatenatedCache:
    """Keys and values of exactly `length` positions, and other states; the graph's outputs replace them at each run."""

    def __init__(
        self,
        session: ort.InferenceSession,
        tensors: tuple[State, ...],
        batch: int,
        limit: int | None = None,
    ) -> None:
        self.batch, self.length, self.limit = batch, 0, limit
        self.binding = session.io_binding()
        self.binding.bind_output(LOGITS, "cpu")
        self._carried = _Carried(self.binding, tensors, batch, 1)

    def prepare(self, new: int) -> None:
        """Raises InputError when `new` more positions pass the context length."""
        require_context(self.length + new, self.limit)

    def advance(self, new: int) -> None:
        """Takes in what the last run has given."""
        self._carried.advance()
        self.length += new


def require_context(needed: int, limit: int | None) -> None:
    """Raises InputError when `needed` positions pass the context length."""
    if limit is not None and needed > limit:
        raise InputError(f"The text has {needed} tokens, more than the model's context of {limit}; shorten it.")
