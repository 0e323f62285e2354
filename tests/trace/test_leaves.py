"""Which modules become the dialect's operators: those that take what leaves are probed with, and no more."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from truecast.dialects.ort import ORT
from truecast.trace.leaves import lowered_leaves


class Norm(nn.Module):
    """A root-mean-square norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class GatedNorm(Norm):
    """The same where it is given no gate."""

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(x if gate is None else x * nn.functional.silu(gate))


def test_a_norm_becomes_an_operator_and_a_gated_one_stays() -> None:
    for module, count in ((Norm(), 1), (GatedNorm(), 0)):
        with lowered_leaves(nn.Sequential(module), ORT) as found:
            assert found["norm"] == count
            assert ("forward" in module.__dict__) is bool(count)
