"""What a traced decoder needs to see of the graph's inputs, wherever it is inside the author's code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import SymInt, Tensor

CacheShape = tuple[tuple[int, int], tuple[int, int]]
"""(heads, width) of a layer's key and of its value."""


class LeafMismatch(Exception):  # noqa: N818 - a signal between two ways of tracing, not a user's error
    """A leaf cannot become the dialect's operator; the message says why. The caller traces it as it is."""


@dataclass(frozen=True)
class CausalMask:
    """A causal mask that the attention operator applies by itself; `window` is None for full attention."""

    window: int | None


@dataclass
class StepContext:
    """The tensors of one decoding step, and what each layer left behind.

    `past` and `present` map a layer's number to its key and value, [batch, kv_heads, length, head_dim]; a past is made
    by `make_past` when a layer first asks for it. `shapes` holds (heads, width) of key and value of every layer that
    has a cache. `total` is the length of past and new together. `last_position`, `total_length` and `bias` are the
    contract of the attention operator (see `AttentionCall`); they are None when attention is traced as it is.
    """

    shapes: Mapping[int, CacheShape]
    make_past: Callable[[int], tuple[Tensor, Tensor]]
    past_length: int | SymInt
    total: int | SymInt
    last_position: Tensor | None = None
    total_length: Tensor | None = None
    bias: Tensor | None = None
    past: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    present: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def past_of(self, layer: int) -> tuple[Tensor, Tensor]:
        """The past key and value of a layer."""
        if layer not in self.past:
            self.past[layer] = self.make_past(layer)
        return self.past[layer]

    def shared(self) -> list[Tensor]:
        """The tensors that every layer reads."""
        return [t for t in (self.last_position, self.total_length, self.bias) if t is not None]

    def with_shared(self, tensors: Sequence[Tensor]) -> StepContext:
        """The same step with other values for `shared()`; past and present stay the same objects."""
        values = iter(tensors)
        return replace(
            self,
            last_position=None if self.last_position is None else next(values),
            total_length=None if self.total_length is None else next(values),
            bias=None if self.bias is None else next(values),
        )
