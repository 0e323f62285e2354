"""What layers carry from step to step: the tensors of these states, and their names among a graph's ports.

The names stand here alone. They are those that transformers.js, optimum and onnxruntime-genai look for:
`past_key_values.3.key` goes in, `present.3.key` comes out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

PAST, PRESENT = "past_key_values", "present"
PARTS = ("key", "value")
_NAME = re.compile(rf"(?:{PAST}|{PRESENT})\.(\d+)\.({'|'.join(PARTS)})")


@dataclass(frozen=True, order=True)
class StateTensor:
    """One tensor of one layer's state; its `part` is one of `PARTS`."""

    layer: int
    part: str

    @classmethod
    def named(cls, port: str | None) -> Self | None:
        """The tensor that a port of this name takes or gives; None for other ports."""
        match = _NAME.fullmatch(port or "")
        return cls(int(match[1]), match[2]) if match else None

    @property
    def past(self) -> str:
        """The name of the input that takes it."""
        return f"{PAST}.{self.layer}.{self.part}"

    @property
    def present(self) -> str:
        """The name of the output that gives it."""
        return f"{PRESENT}.{self.layer}.{self.part}"


def patterns(part: str) -> tuple[str, str]:
    """The names of a part's inputs and outputs, with %d for the layer."""
    return f"{PAST}.%d.{part}", f"{PRESENT}.%d.{part}"


def is_past(port: str | None) -> bool:
    """Whether an input of this name takes a state."""
    return (port or "").startswith(f"{PAST}.")
