"""Activations are recognised by their values, however they are written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from truecast.dialects.modules import ActivationLowering

SPELLINGS = {
    "gelu": nn.functional.gelu,
    "gelu_python": nn.functional.gelu,
    "gelu_new": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "gelu_accurate": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "silu": nn.functional.silu,
    "swish": nn.functional.silu,
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_transformers_spellings_become_the_standard_function(name: str) -> None:
    emit = ActivationLowering().recognise("act", ACT2FN[name])
    assert emit is not None
    x = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    assert torch.equal(emit(x), SPELLINGS[name](x))


@pytest.mark.parametrize("name", ["relu", "relu2", "quick_gelu", "tanh", "mish", "gelu_10", "hardswish", "linear"])
def test_other_activations_are_traced_as_they_are(name: str) -> None:
    assert ActivationLowering().recognise("act", ACT2FN[name]) is None


def test_dropout_is_no_activation() -> None:
    assert ActivationLowering().recognise("dropout", nn.Dropout(0.5).eval()) is None


def test_an_activation_with_a_weight_is_traced_as_it_is() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alpha = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.silu(self.alpha * x)

    assert ActivationLowering().recognise("act", Scaled()) is None
