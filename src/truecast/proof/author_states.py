"""What the author's cache holds, under the names that a graph's states have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from truecast.states import CONVOLUTION, PARTS, RECURRENT, StateTensor

AuthorStates = Mapping[StateTensor, Tensor]
"""Keys and values [batch, heads, length, width]; states of the shapes that authors give them."""


def states_of(cache: DynamicCache) -> dict[StateTensor, Tensor]:
    """The tensors that a cache holds; they are its own, which authors change in place."""
    found: dict[StateTensor, Tensor] = {}
    layers: list[Any] = list(cache.layers)
    for number, layer in enumerate(layers):
        held = {"key": getattr(layer, "keys", None), "value": getattr(layer, "values", None)}
        if isinstance(layer, LinearAttentionCacheLayerMixin) and layer.has_previous_state[0]:
            held |= {CONVOLUTION: layer.conv_states[0], RECURRENT: layer.recurrent_states[0]}
        found |= {StateTensor(number, part): tensor for part, tensor in held.items() if tensor is not None}
    return found


def fill(cache: DynamicCache, states: AuthorStates) -> None:
    """Puts copies of states into an empty cache."""
    for number in sorted({tensor.layer for tensor in states}):
        held = {tensor.part: value.clone() for tensor, value in states.items() if tensor.layer == number}
        if held.keys() >= set(PARTS):
            cache.update(held["key"], held["value"], number)
        if CONVOLUTION in held:
            cache.update_conv_state(held[CONVOLUTION], number)
        if RECURRENT in held:
            cache.update_recurrent_state(held[RECURRENT], number)
