"""Linear and embedding modules leave an abstract operator that names their weight; look-alikes are traced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from truecast.dialects.modules import EmbeddingLowering, LinearLowering


class Recorder:
    """Notes the last symbolic operator and gives zeros of its shape."""

    name, attributes = "", dict[str, Any]()

    def __call__(
        self,
        name: str,
        inputs: Sequence[Tensor],
        attributes: Mapping[str, Any],
        *,
        dtype: torch.dtype,
        shape: Sequence[int],
        version: int,
    ) -> Tensor:
        self.name, self.attributes = name, dict(attributes)
        return torch.zeros(*shape, dtype=dtype)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(torch.onnx.ops, "symbolic", recorder)
    return recorder


class DoubledLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", [nn.Linear, DoubledLinear])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_module_names_its_weight_and_bias(kind: type[nn.Linear], bias: bool, recorder: Recorder) -> None:
    emit = LinearLowering().recognise("model.proj", kind(3, 5, bias=bias))
    assert emit is not None
    assert emit(torch.zeros(2, 7, 3)).shape == (2, 7, 5)
    assert recorder.name == "truecast::Linear"
    assert recorder.attributes == {
        "weight": "model.proj.weight",
        "bias": "model.proj.bias" if bias else "",
        "transposed": 0,
        "K": 3,
        "N": 5,
    }


def test_the_transposed_linear_of_gpt2_is_recognised(recorder: Recorder) -> None:
    emit = LinearLowering().recognise("c_attn", Conv1D(5, 3))
    assert emit is not None
    assert emit(torch.zeros(2, 7, 3)).shape == (2, 7, 5)
    assert (recorder.attributes["transposed"], recorder.attributes["K"], recorder.attributes["N"]) == (1, 3, 5)


def test_a_transposed_linear_is_recognised_by_its_formula_not_its_class(recorder: Recorder) -> None:
    class Squared(Conv1D):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * x)

    assert LinearLowering().recognise("c_attn", Squared(5, 3)) is None


def test_a_matrix_without_the_shape_of_a_linear_module_is_left_alone() -> None:
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(5, 3))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.weight.T).softmax(-1)

    assert LinearLowering().recognise("router", Router()) is None


def test_a_linear_module_with_a_buffer_is_left_alone() -> None:
    module = nn.Linear(3, 5)
    module.register_buffer("mask", torch.ones(5, 3))
    assert LinearLowering().recognise("masked", module) is None


def test_an_embedding_names_its_table(recorder: Recorder) -> None:
    emit = EmbeddingLowering().recognise("wte", nn.Embedding(11, 4))
    assert emit is not None
    assert emit(torch.zeros(2, 7, dtype=torch.long)).shape == (2, 7, 4)
    assert (recorder.name, recorder.attributes) == ("truecast::Embedding", {"weight": "wte.weight", "V": 11, "H": 4})


def test_an_embedding_that_renormalizes_its_rows_is_left_alone() -> None:
    assert EmbeddingLowering().recognise("wte", nn.Embedding(11, 4, max_norm=1.0)) is None


def test_an_embedding_is_no_linear_module() -> None:
    assert LinearLowering().recognise("wte", nn.Embedding(11, 4)) is None
