"""What layers carry from step to step: the tensors of these states, and their names among a graph's ports.

| part | what it is | behind the batch axis | from step to step |
|---|---|---|---|
| `key`, `value` | of attention | [heads, length, width] | grows by the new positions |
| `conv` | the last inputs of a causal convolution | [channels, kernel] | replaced |
| `ssm` | the state of a state space model | [channels, state] or [heads, width, state] | replaced |

The names stand here alone. They are those that transformers.js, optimum and onnxruntime-genai look for:
`past_key_values.3.key` goes in, `present.3.key` comes out; `past_conv.3` goes in, `present_conv.3` comes out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PARTS = ("key", "value")
"""Parts of an attention's state; they grow."""
CONVOLUTION, RECURRENT = "conv", "ssm"
"""Parts that keep their size."""
NAMES: Mapping[str, tuple[str, str]] = {
    "key": ("past_key_values.%d.key", "present.%d.key"),
    "value": ("past_key_values.%d.value", "present.%d.value"),
    CONVOLUTION: ("past_conv.%d", "present_conv.%d"),
    RECURRENT: ("past_ssm.%d", "present_ssm.%d"),
}
"""The names of a part's inputs and outputs, with %d for the layer."""
_PATTERNS = [
    (part, re.compile(re.escape(name).replace("%d", r"(\d+)"))) for part, names in NAMES.items() for name in names
]
_PASTS = tuple(past.partition("%d")[0] for past, _ in NAMES.values())


@dataclass(frozen=True, order=True)
class StateTensor:
    """One tensor of one layer's state; its `part` is one of `NAMES`."""

    layer: int
    part: str

    @classmethod
    def named(cls, port: str | None) -> StateTensor | None:
        """The tensor that a port of this name takes or gives; None for other ports."""
        found = ((part, pattern.fullmatch(port or "")) for part, pattern in _PATTERNS)
        return next((StateTensor(int(match[1]), part) for part, match in found if match), None)

    @property
    def past(self) -> str:
        """The name of the input that takes it."""
        return NAMES[self.part][0] % self.layer

    @property
    def present(self) -> str:
        """The name of the output that gives it."""
        return NAMES[self.part][1] % self.layer


@dataclass(frozen=True)
class State(StateTensor):
    """A tensor of a state as a graph declares it: `sizes` behind the batch axis, None for the axis that grows."""

    sizes: tuple[int | None, ...]
    dtype: str

    @property
    def grows(self) -> bool:
        """Whether it becomes longer with every position, rather than being replaced."""
        return None in self.sizes

    def shape(self, batch: Any, length: Any) -> list[Any]:
        """The whole shape; `length` is that of the axis that grows."""
        return [batch, *(length if size is None else size for size in self.sizes)]


def is_past(port: str | None) -> bool:
    """Whether an input of this name takes a state."""
    return (port or "").startswith(_PASTS)
