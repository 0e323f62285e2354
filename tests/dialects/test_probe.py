"""Probing: when two numbers agree, and when two modules are built alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from truecast.dialects.probe import agrees, author_call, structure, with_random_weights


def test_float32_rounding_is_agreement() -> None:
    exact = torch.randn(1000, dtype=torch.float64)
    assert agrees(exact.float().double(), exact)


@pytest.mark.parametrize(
    "got",
    [
        torch.ones(4) * 1.0001,
        torch.tensor([1.0, 1.0, 1.0, float("nan")]),
        torch.tensor([1.0, 1.0, 1.0, float("inf")]),
        torch.ones(4, 1),
        torch.ones(5),
        None,
        (torch.ones(4),),
    ],
)
def test_another_value_shape_or_type_is_none(got: object) -> None:
    assert not agrees(got, torch.ones(4, dtype=torch.float64))


def test_code_that_does_not_take_the_probe_gives_none() -> None:
    assert author_call(lambda x: x, 1, 2) is None
    assert author_call(lambda x: x.no_such_attribute, torch.ones(1)) is None


def test_an_interrupt_inside_the_authors_code_is_not_swallowed() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        author_call(interrupted)


def test_the_probed_copy_has_weights_of_its_own() -> None:
    module = nn.Linear(2, 3)
    twin = with_random_weights(module)
    assert twin.get_parameter("weight").dtype == torch.float64
    assert module.weight.dtype == torch.float32
    assert twin.get_parameter("weight").shape == (3, 2)


class Block(nn.Module):
    """A layer with settings of every kind."""

    def __init__(self, **settings: object) -> None:
        super().__init__()
        self.layer_idx, self.window, self.scale, self.sizes = 0, None, 1.0, [1, 2]
        self.project = nn.Linear(2, 3)
        self.gain = nn.Parameter(torch.ones(2))
        self.shift = partial(torch.add, alpha=2)
        for name, value in settings.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return x


class OtherBlock(Block):
    pass


def test_the_number_and_the_weights_of_a_layer_make_no_difference() -> None:
    assert structure(Block()) == structure(Block(layer_idx=7))


@pytest.mark.parametrize(
    "other",
    [
        lambda: Block(window=8),
        lambda: Block(scale=0.5),
        lambda: Block(sizes=[1, 3]),
        lambda: Block(project=nn.Linear(2, 4)),
        lambda: Block(project=nn.Linear(2, 3, bias=False)),
        lambda: Block(project=nn.Linear(2, 3).half()),
        lambda: Block(project=nn.Identity()),
        lambda: Block(extra=nn.Linear(2, 3)),
        lambda: Block(gain=nn.Parameter(torch.ones(3))),
        lambda: Block(shift=partial(torch.add, alpha=3)),
        lambda: Block(shift=partial(torch.sub, alpha=2)),
        lambda: Block(config=object()),
        lambda: OtherBlock(),
    ],
)
def test_anything_else_does(other: Callable[[], nn.Module]) -> None:
    assert structure(Block()) != structure(other())


def test_a_shared_object_is_the_same_setting() -> None:
    shared = object()
    assert structure(Block(config=shared)) == structure(Block(config=shared))
