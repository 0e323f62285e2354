"""transformers' cache with the graph's inputs as the past, and one that learns what the layers of a model carry.

Data flow: a recording run → `RecordingCache.states` → under the trace, the author's layers ask `GraphCache` for their
past, which are the graph's inputs, and leave there what the graph's outputs become.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from truecast.errors import InputError
from truecast.states import CONVOLUTION, PARTS, RECURRENT, State
from truecast.trace.context import StepContext


class _GraphLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's cache: the past is a graph input, the present a graph output."""

    is_sliding = False

    def __init__(self, cache: GraphCache, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache, self.index = cache, index
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the past is there from the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The new states as they are when an operator will append them, otherwise past and new together."""
        return self.cache.append(self.index, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[Any, int]:
        """Length and offset of the keys."""
        return self.cache.context.past_length + query_length, 0

    def get_seq_length(self) -> Any:
        """Length of the past."""
        return self.cache.context.past_length

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class GraphCache(Cache):
    """transformers' cache, with the graph's inputs as the past.

    With `append_in_operator`, keys and values pass through unchanged and are remembered, so that the attention seam can
    tell whether the author changed them on the way.
    """

    def __init__(self, context: StepContext, layers: int, append_in_operator: bool) -> None:
        self.context, self.append_in_operator = context, append_in_operator
        self.handed_out: dict[int, tuple[Tensor, Tensor]] = {}
        self.going_on: Tensor | None = None
        super().__init__(layers=[_GraphLayer(self, index) for index in range(layers)])

    def append(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """See `_GraphLayer.update`."""
        if self.append_in_operator:
            self.handed_out[index] = (key, value)
            return key, value
        past_key, past_value = (self.context.past_of(index, part) for part in PARTS)
        present = (torch.cat([past_key, key], 2), torch.cat([past_value, value], 2))
        for part, tensor in zip(PARTS, present, strict=True):
            self.context.leave(index, part, tensor)
        return present

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor:
        """The last inputs of a layer's convolution, [batch, channels, kernel]."""
        return self.context.past_of(layer_idx, CONVOLUTION)

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> Tensor:
        """Past and new inputs together, of which the last ones are kept."""
        past = self.context.past_of(layer_idx, CONVOLUTION)
        whole = torch.cat([past, conv_states], -1)
        self.context.leave(layer_idx, CONVOLUTION, whole[..., -past.shape[-1] :])
        return whole

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor:
        """The state that a layer's recurrence goes on from."""
        self.going_on = self.context.past_of(layer_idx, RECURRENT)
        return self.going_on

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any) -> Tensor:
        """Takes the state behind the new positions."""
        self.context.leave(layer_idx, RECURRENT, recurrent_states)
        return recurrent_states

    def is_recording_past(self, layer_idx: int) -> bool:
        """Nothing is undone here."""
        return False

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """A past is always there: behind no tokens it is zeros, which is what authors begin with."""
        return True


def dtype_name(dtype: torch.dtype) -> str:
    """What NumPy calls it, too."""
    return str(dtype).removeprefix("torch.")


class RecordingCache(GraphCache):
    """Notes the shapes of what each layer stores; the past is empty."""

    def __init__(self, layers: int, dtype: str) -> None:
        super().__init__(StepContext({}, lambda layer: (), 0, 0), layers, append_in_operator=True)
        self._dtype = dtype
        self._noted: dict[int, dict[str, State]] = {}

    @property
    def states(self) -> dict[int, tuple[State, ...]]:
        """The states of every layer that has any."""
        return {layer: tuple(parts.values()) for layer, parts in sorted(self._noted.items())}

    def _note(self, layer: int, part: str, sizes: Sequence[int | None], dtype: str, index: int = 0) -> None:
        if index:
            raise InputError(
                f"Layer {layer} keeps several states of one kind, which cannot be cast yet; choose another model."
            )
        self._noted.setdefault(int(layer), {})[part] = State(int(layer), part, tuple(sizes), dtype)

    def append(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Records [heads, length, width] of key and value."""
        for part, tensor in zip(PARTS, (key, value), strict=True):
            self._note(index, part, (tensor.shape[1], None, tensor.shape[3]), self._dtype)
        return key, value

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:  # type: ignore[override]
        """None yet."""

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> None:  # type: ignore[override]
        """None yet."""

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> Tensor:
        """Records [channels, kernel]."""
        kernel = conv_kernel_size or conv_states.shape[-1]
        sizes = (*conv_states.shape[1:-1], kernel)
        self._note(layer_idx, CONVOLUTION, sizes, dtype_name(conv_states.dtype), state_idx)
        return conv_states

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any) -> Tensor:
        """Records the shape behind the batch axis."""
        self._note(layer_idx, RECURRENT, recurrent_states.shape[1:], dtype_name(recurrent_states.dtype), state_idx)
        return recurrent_states

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Not yet."""
        return False
