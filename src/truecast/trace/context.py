"""What a traced decoder needs to see of the graph's inputs, wherever it is inside the author's code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import SymInt, Tensor

from truecast.states import State, StateTensor

States = Mapping[int, tuple[State, ...]]
"""The tensors that each layer with a state carries, by its number."""


class LeafMismatch(Exception):  # noqa: N818 - a signal between two ways of tracing, not a user's error
    """A leaf cannot become the dialect's operator; the message says why. The caller traces it as it is."""


@dataclass(frozen=True)
class CausalMask:
    """A causal mask that the attention operator applies by itself; `window` is None for full attention."""

    window: int | None


@dataclass
class StepContext:
    """The tensors of one decoding step, and what each layer left behind.

    `past` and `present` hold the tensors of states by the names of their ports, in the shapes that `states` says; those
    of a layer's past are made by `make_past` when it first asks for one. `total` is the length of past and new
    together. `last_position`, `total_length` and `bias` are the contract of the attention operator (see
    `AttentionCall`); they are None when attention is traced as it is.
    """

    states: States
    make_past: Callable[[int], Sequence[Tensor]]
    past_length: int | SymInt
    total: int | SymInt
    last_position: Tensor | None = None
    total_length: Tensor | None = None
    bias: Tensor | None = None
    past: dict[str, Tensor] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)

    def pasts(self, layer: int) -> list[Tensor]:
        """The past of a layer, in the order of its states; none for a layer without any."""
        layer = int(layer)  # which may notice being computed with
        states = self.states.get(layer, ())
        if states and states[0].past not in self.past:
            self.past.update(zip((state.past for state in states), self.make_past(layer), strict=True))
        return [self.past[state.past] for state in states]

    def past_of(self, layer: int, part: str) -> Tensor:
        """One tensor of a layer's past."""
        self.pasts(layer)
        name = StateTensor(int(layer), part).past
        if name not in self.past:
            raise LeafMismatch(f"layer {layer} reads a past that a recording run does not have")
        return self.past[name]

    def leave(self, layer: int, part: str, tensor: Tensor) -> None:
        """Takes one tensor of what a layer leaves behind."""
        self.present[StateTensor(int(layer), part).present] = tensor

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
