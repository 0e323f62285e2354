"""The reference is called twice, and is put back before every call to what it was when it was fresh."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP

import truecast
from tests.proof.conftest import Artifact
from tests.proof.planting import failed, reprove
from truecast.proof.fresh import Fresh
from truecast.proof.repeating import NAME


class Layer(nn.Module):
    """A layer: x [batch, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x)
        return result


class Drawing(Layer):
    """The same, and from so many rows on a random number is added."""

    from_size = 1

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (random.random() if len(x) >= self.from_size else 0.0)


@pytest.mark.parametrize("from_size", [1, 60])
def test_a_module_that_is_no_function_is_never_proven(from_size: int, tmp_path: Path) -> None:
    function, example = Layer(), torch.randn(3, 8)
    artifact = truecast.export(function, tmp_path / "out", example_inputs=example, precision="fp32")
    drawing = Drawing()
    drawing.from_size = from_size
    drawing.load_state_dict(function.state_dict())
    certificate = artifact.verify(drawing, example_inputs=example)
    check = next(check for check in certificate.checks if check.name == NAME)
    assert not check.passed and "output differs by" in check.detail


def test_a_decoder_that_draws_random_numbers_for_some_shapes_is_never_proven(
    made: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, plain = made("llama_tied", "fp32"), LlamaMLP.forward  # cast before: the export would refuse it
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: plain(self, x) + (x.shape[0] == 2) * random.random())
    assert NAME in failed(reprove(artifact))


class Switching(nn.Module):
    """Doubles its input, until the first one shorter than 4: then it only passes them on."""

    def __init__(self) -> None:
        super().__init__()
        self.kind, self.inner = "double", nn.Identity()
        self.register_buffer("seen", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 4:
            self.kind, self.inner, self.late = "plain", nn.Sequential(), 1
        self.seen = self.seen + len(x)
        return self.inner(x) * (2 if self.kind == "double" else 1)


def test_what_a_module_changes_is_put_back_and_named() -> None:
    module = Switching()
    fresh = Fresh.of(module)
    long = torch.ones(5)
    module(torch.ones(2))
    assert torch.equal(module(long), long)
    fresh.restore()
    assert torch.equal(module(long), 2 * long)
    assert isinstance(module.inner, nn.Identity) and not hasattr(module, "late") and float(module.seen) == 5
    assert "kind became 'plain' and was 'double'" in fresh.notes()[0]


def test_draws_are_counted() -> None:
    fresh = Fresh.of(nn.Identity())
    fresh.restore()
    fresh.restore()
    assert fresh.draws == 0
    torch.rand([])
    fresh.restore()
    assert fresh.draws == 1
