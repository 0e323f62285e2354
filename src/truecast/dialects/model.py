"""What a dialect is made of: lowerings of modules, of the rotary function, and of attention.

Data flow: tracer meets a leaf → `recognise*` compares the author's computation with the operator's formula → the
returned `Emit` is called during the trace instead of the author's code and leaves one operator in the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

Tensor = torch.Tensor
Emit = Callable[..., Tensor]


class ModuleLowering(Protocol):
    """Turns a module with a known meaning into operators."""

    @property
    def leaf(self) -> str:
        """The kind of leaf, for reports: `linear`, `norm`, …"""

    def recognise(self, name: str, module: torch.nn.Module) -> Emit | None:
        """The replacement of `module.forward`, or None when the module computes something else."""


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention function, as the cache and mask seams saw it.

    query [batch, heads, sequence, head_dim]; key and value the *new* ones, [batch, kv_heads, sequence, head_dim];
    past_key and past_value [batch, kv_heads, past, head_dim]; `window` counts the positions a query sees, itself
    included, or is None; `bias` [batch, 1, sequence, total] is None where the padding contract needs none.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    past_key: Tensor
    past_value: Tensor
    last_position: Tensor
    total_length: Tensor
    bias: Tensor | None
    total: int
    scale: float
    window: int | None
    softcap: float
    sinks: Tensor | None


class AttentionLowering(Protocol):
    """Turns attention over a cache into operators."""

    def supports(self, call: AttentionCall) -> str | None:
        """None when the operator can do it, otherwise the reason why not, in one sentence."""

    def reference(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        scale: float,
        softcap: float,
        sinks: Tensor | None,
    ) -> Tensor:
        """The operator's own formula: scores, soft cap, additive mask, softmax, values; [batch, heads, seq, dim]."""

    def emit(self, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
        """Output [batch, sequence, heads, head_dim], present key and present value."""


@dataclass(frozen=True)
class RotaryForm:
    """How an author's rotary function rotates.

    `interleaved`: pairs are neighbours (2i, 2i+1), else halves (i, i + dim/2). `repeated`: the author's cos and sin
    tables hold every angle twice in a row, else the whole run of angles twice. `head_axis`: where the heads are in the
    4-D query, 1 or 2. `partial`: where the tables are narrower than a head, the rest of the head passes unchanged.
    `once`: the tables hold every angle once only, so that they have half the width.
    """

    interleaved: bool
    repeated: bool
    head_axis: int
    partial: bool = True
    once: bool = False

    def width(self, table: Tensor) -> int:
        """How much of a head the angles of a table rotate."""
        return int(table.shape[-1]) * (2 if self.once else 1)


class RotaryLowering(Protocol):
    """Turns the author's rotary function into operators."""

    def recognise(self, function: Callable[..., tuple[Tensor, Tensor]], head_axis: int) -> RotaryForm | None:
        """The form of `function(q, k, cos, sin, ...)`, or None when it is not a plain rotation."""

    def emit(self, form: RotaryForm, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`states` rotated; same shape. cos and sin as the author's module gives them, [batch, sequence, width]."""


@dataclass(frozen=True)
class Dialect:
    """The operators of one target.

    `opset` is that of the standard domain; `contrib` allows operators beyond it. `experts` are the activations that its
    operator for experts has; without any, every expert is computed.
    """

    name: str
    opset: int
    modules: tuple[ModuleLowering, ...]
    rotary: RotaryLowering | None
    attention: AttentionLowering | None
    contrib: bool = True
    experts: frozenset[str] = frozenset()
