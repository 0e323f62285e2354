"""What roundings do to a module that rounds to codes: its outputs with inputs moved by a few of them.

A module with fake quantization rounds to codes. Where a value lies between two codes, the last bit of a float32 sum
decides, in the author's own run as in any other, and one step is the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from truecast.proof.operators import Array
from truecast.proof.reference import Reference
from truecast.trace.author import AuthorModule

STEP, MIDDLE = "scale", "zero_point"
"""Buffers of a module that rounds to codes while it computes, as torch's FakeQuantize does."""
SHAKE, SHAKES = 2.0**-20, 4
"""Relative change of an input, about what float32 sums are off by, and how many are tried."""


def rounds_to_codes(module: nn.Module) -> bool:
    """Whether a part of the module rounds to codes: float64 moves a value that lies between two of them as little as a
    sum in another order does, and says nothing of the step that follows."""
    return any({STEP, MIDDLE} <= set(part._buffers) for part in module.modules())


def shaken(reference: Reference, author: AuthorModule, tensors: Sequence[Tensor]) -> dict[str, Array]:
    """The author's outputs by name with inputs off by a few roundings: of several, those that moved furthest."""
    want: Mapping[str, Array] = reference.outputs(author, tuple(tensors))
    furthest = dict(want)
    for seed in range(SHAKES):
        generator = torch.Generator().manual_seed(seed)
        for name, values in reference.outputs(author, tuple(_moved(x, generator) for x in tensors)).items():
            if _distance(values, want[name]) > _distance(furthest[name], want[name]):
                furthest[name] = values
    return furthest


def _moved(x: Tensor, generator: torch.Generator) -> Tensor:
    return x * (1 + SHAKE * torch.randn(x.shape, generator=generator)) if x.is_floating_point() else x


def _distance(left: Array, right: Array) -> float:
    return float(np.abs(left - right).max(initial=0))
