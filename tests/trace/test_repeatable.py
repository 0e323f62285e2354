"""Modules whose outputs follow from chance or from earlier calls are told from those that are functions."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel

from truecast.errors import InputError
from truecast.trace.author import AuthorModule, InputSpec
from truecast.trace.repeatable import apart_by, require_function
from truecast.trace.skeleton import fake_tensors

Forward = Callable[[nn.Module, Tensor], Tensor]


class Called(nn.Module):
    """A linear layer, a counter, and what `forward` makes of them: x [batch, 8]."""

    def __init__(self, function: Forward) -> None:
        super().__init__()
        self.linear, self.calls, self.function = nn.Linear(8, 8), 0, [function]

    def forward(self, x: Tensor) -> Tensor:
        return self.function[0](self, self.linear(x))


def into_a_view(module: nn.Module, x: Tensor) -> Tensor:
    noise = torch.zeros_like(x)
    noise[:, :3].normal_()
    return x + noise


def counts(module: nn.Module, x: Tensor) -> Tensor:
    module.calls += 1
    return x * module.calls


def exchanges(module: nn.Module, x: Tensor) -> Tensor:
    module.linear = nn.Sequential(module.linear)
    return x


def unused(module: nn.Module, x: Tensor) -> Tensor:
    torch.rand([])  # as models do that leave out layers at random in training
    return functional.dropout(x, 0.5, training=module.training)


def attention(module: nn.Module, x: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(x[None], x[None], x[None])


RANDOM: dict[str, Forward] = {
    "functional dropout": lambda module, x: functional.dropout(x, 0.5),
    "random numbers": lambda module, x: x + torch.randn(8),
    "like another": lambda module, x: x * torch.rand_like(x),
    "a permutation": lambda module, x: x[:, torch.randperm(8)],
    "into a view": into_a_view,
}
UNSEEN_BY_TORCH: dict[str, Forward] = {
    "Python's generator": lambda module, x: x * random.random(),
    "NumPy's generator": lambda module, x: x * float(np.random.rand()),
    "a counter": counts,
}
FUNCTIONS: dict[str, Forward] = {
    "nothing": lambda module, x: x,
    "drawn and left": unused,
    "attention without dropout": attention,
    "a leaky rectifier": lambda module, x: functional.rrelu(x),
}


def called(function: Forward, fake: bool) -> dict[str, Tensor]:
    with fake_tensors() if fake else nullcontext() as mode:
        module, x = Called(function).eval(), torch.randn(3, 8)
        author = AuthorModule(module, (InputSpec("x", x, {}),))
        return require_function(replace(author, mode=mode), [x])


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_in_an_output_are_refused_with_and_without_weights(name: str, fake: bool) -> None:
    with pytest.raises(InputError, match="draws random numbers" if fake else "gives two results"):
        called(RANDOM[name], fake)


@pytest.mark.parametrize("name", UNSEEN_BY_TORCH)
def test_a_module_that_says_something_else_when_called_again_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="Called called twice with the same inputs gives two results"):
        called(UNSEEN_BY_TORCH[name], False)


def test_what_changed_is_named() -> None:
    with pytest.raises(InputError, match=r"calls is 2 and was 0|calls is 1 and was 0"):
        called(counts, False)


@pytest.mark.parametrize("fake", [False, True])
def test_a_module_that_exchanges_its_parts_is_refused(fake: bool) -> None:
    with pytest.raises(InputError, match="linear's class is Sequential and was Linear"):
        called(exchanges, fake)


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_taken(name: str, fake: bool) -> None:
    assert list(called(FUNCTIONS[name], fake)) == ["output"]


def test_an_encoder_that_turns_to_another_attention_at_short_inputs_is_refused() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("big_bird", **sizes, vocab_size=50, block_size=8, num_random_blocks=2)
    with fake_tensors() as mode:
        model, ids = AutoModel.from_config(config).eval(), torch.zeros(2, 17, dtype=torch.long)
        author = AuthorModule(model, (InputSpec("input_ids", ids, {}),), "feature-extraction", mode=mode)
        with pytest.raises(InputError, match="BigBirdSelfAttention and was BigBirdBlockSparseAttention"):
            require_function(author, [ids])


def test_results_are_apart_by_a_part_of_their_largest_value() -> None:
    one = torch.tensor([4.0, float("nan"), float("inf")])
    assert apart_by(one, one.clone()) == 0
    assert apart_by(one, torch.tensor([5.0, float("nan"), float("inf")])) == pytest.approx(0.25)
    assert apart_by(one, torch.tensor([4.0, 1.0, float("inf")])) == float("inf")
    assert apart_by(torch.tensor([1, 2]), torch.tensor([1, 3])) == float("inf")
