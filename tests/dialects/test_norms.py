"""Norms are recognised by what they compute, and the operator they become computes the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from truecast.dialects.ort.modules import NormLowering

WIDTH, EPSILON = 8, 3e-3


class Norm(nn.Module):
    """A norm with random parameters, and one way to compute it."""

    def __init__(self, compute: Callable[[Norm, Tensor], Tensor], *names: str, epsilon: str = "eps") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name in names:
            setattr(self, name, nn.Parameter(torch.rand(WIDTH, generator=generator) + 0.5))
        setattr(self, epsilon, EPSILON)
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON)


def centred(x: Tensor) -> Tensor:
    return rms(x - x.mean(-1, keepdim=True))


def in_float32(self: Norm, x: Tensor) -> Tensor:
    return self.weight * rms(x.to(torch.float32)).to(x.dtype)


NORMS = {
    "weight": Norm(lambda self, x: rms(x) * self.weight, "weight"),
    "one plus weight": Norm(lambda self, x: rms(x) * (1 + self.weight), "weight"),
    "no weight": Norm(lambda self, x: rms(x)),
    "layer norm": Norm(lambda self, x: centred(x) * self.weight + self.bias, "weight", "bias"),
    "layer norm without bias": Norm(lambda self, x: centred(x) * self.weight, "weight"),
    "layer norm of one plus weight": Norm(lambda self, x: centred(x) * (1 + self.weight) + self.bias, "weight", "bias"),
    "bias without centring": Norm(lambda self, x: rms(x) * self.weight + self.bias, "weight", "bias"),
    "other names": Norm(lambda self, x: rms(x) * self.gamma + self.beta, "beta", "gamma", epsilon="variance_epsilon"),
    "rounded to float32 inside": Norm(in_float32, "weight"),
    "root of the mean square": Norm(lambda self, x: x / (x.square().mean(-1, True) + EPSILON).sqrt() * self.w, "w"),
    "torch's own": nn.RMSNorm(WIDTH, eps=EPSILON),
}

OTHERS = {
    "epsilon outside the root": Norm(
        lambda self, x: x / (x.pow(2).mean(-1, keepdim=True).sqrt() + EPSILON) * self.weight, "weight"
    ),
    "no epsilon": Norm(lambda self, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)) * self.weight, "weight"),
    "mean of absolute values": Norm(
        lambda self, x: x / (x.abs().mean(-1, keepdim=True) + EPSILON) * self.weight, "weight"
    ),
    "scaled by 0.99": Norm(lambda self, x: 0.99 * rms(x) * self.weight, "weight"),
    "two plus weight": Norm(lambda self, x: rms(x) * (2 + self.weight), "weight"),
    "sum instead of mean": Norm(
        lambda self, x: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + EPSILON) * self.weight, "weight"
    ),
    "over another axis": Norm(
        lambda self, x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + EPSILON) * self.weight, "weight"
    ),
    "in groups": Norm(lambda self, x: rms(x.unflatten(-1, (2, -1))).flatten(-2) * self.weight, "weight"),
    "variance with Bessel's correction": Norm(
        lambda self, x: (x - x.mean(-1, True)) * torch.rsqrt(x.var(-1, keepdim=True) + EPSILON) * self.weight, "weight"
    ),
    "a gate beside it": Norm(lambda self, x: rms(x) * self.weight * torch.sigmoid(x), "weight"),
    "not a norm": Norm(lambda self, x: x * self.weight, "weight"),
}


@pytest.mark.usefixtures("in_onnxruntime")
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_becomes_an_operator_with_the_same_numbers(name: str) -> None:
    module = NORMS[name]
    emit = NormLowering().recognise("norm", module)
    assert emit is not None
    for size in (1.0, 0.05):  # at the second, epsilon is about as large as the mean square
        x = size * torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(emit(x), module(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_looks_like_a_norm_is_left_alone(name: str) -> None:
    assert NormLowering().recognise("norm", OTHERS[name]) is None


def test_a_small_epsilon_outside_the_root_is_noticed_too() -> None:
    def outside(self: Norm, x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)

    module = Norm(outside)
    module.eps = 1e-6
    assert NormLowering().recognise("norm", module) is None


def test_torchs_layer_norm_is_left_to_the_exporter() -> None:
    assert NormLowering().recognise("norm", nn.LayerNorm(WIDTH)) is None


def test_a_norm_that_also_wants_a_gate_is_left_alone() -> None:
    class Gated(Norm):
        def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
            return rms(x) * self.weight * gate

    assert NormLowering().recognise("norm", Gated(in_float32, "weight")) is None


def test_recognising_changes_neither_weights_nor_module() -> None:
    module = Norm(in_float32, "weight")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    NormLowering().recognise("norm", module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.weight.dtype == torch.float32
    assert "forward" not in module.__dict__
