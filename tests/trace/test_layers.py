"""Each kind of layer runs once in a trace; whatever could make two layers differ stops that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from truecast.states import PARTS, State
from truecast.trace.caches import GraphCache
from truecast.trace.context import CausalMask, StepContext
from truecast.trace.layers import LayerTracer, UnlikeLayersError, find_layers, traced_once

Compute = Callable[["Layer", Tensor, GraphCache], Any]
PAST = 3


def plain(self: Layer, x: Tensor, cache: GraphCache) -> Any:
    return x @ self.weight


def cached(self: Layer, x: Tensor, cache: GraphCache) -> Any:
    states = x.reshape(1, 1, -1, 8)
    for part, tensor in zip(PARTS, cache.update(states, states, self.layer_idx), strict=True):
        cache.context.leave(self.layer_idx, part, tensor)
    return plain(self, x, cache)


class Layer(nn.Module):
    """A layer that knows its number and counts its runs."""

    def __init__(self, layer_idx: int, compute: Compute = plain) -> None:
        super().__init__()
        self.layer_idx, self.compute = layer_idx, compute
        self.weight = nn.Parameter(torch.zeros(8, 8))
        self._runs = 0

    def forward(self, x: Tensor, cache: GraphCache, mask: Any = None) -> Any:
        self._runs += 1
        return self.compute(self, x, cache)


def context(cached_layers: tuple[int, ...] = ()) -> StepContext:
    past = torch.zeros(1, 1, PAST, 8)
    states = {n: tuple(State(n, part, (1, None, 8), "float32") for part in PARTS) for n in cached_layers}
    return StepContext(states, lambda layer: (past, past), PAST, PAST + 2)


def run(layers: list[Layer], cached_layers: tuple[int, ...] = (), masks: list[Any] | None = None) -> list[int]:
    """Runs the layers one after the other in a trace; how often each one ran by itself."""
    cache = GraphCache(context(cached_layers), len(layers), append_in_operator=True)
    x = torch.ones(2, 8)
    with traced_once(nn.ModuleList(layers), cache):
        for layer, mask in zip(layers, masks or [None] * len(layers), strict=True):
            x = layer(x, cache, mask)
    return [layer._runs for layer in layers]


def test_of_layers_built_alike_the_first_runs() -> None:
    assert run([Layer(i) for i in range(4)]) == [1, 0, 0, 0]


def test_a_layer_with_another_setting_runs_too() -> None:
    layers = [Layer(i) for i in range(4)]
    layers[2].window = 8
    assert run(layers) == [1, 0, 1, 0]


def test_a_layer_called_with_another_mask_runs_too() -> None:
    masks = [CausalMask(None), CausalMask(8), CausalMask(None), CausalMask(8)]
    assert run([Layer(i) for i in range(4)], masks=masks) == [1, 1, 0, 0]


def test_a_layer_may_use_its_number_to_find_its_cache() -> None:
    assert run([Layer(i, cached) for i in range(3)], (0, 1, 2)) == [1, 0, 0]


@pytest.mark.parametrize(
    "use",
    [
        lambda number: number + 1,
        lambda number: 1 / (number + 1),
        lambda number: number * 2.0,
        lambda number: number % 2,
        lambda number: number // 2,
        lambda number: number**2,
        lambda number: -number,
        lambda number: number == 0,
        lambda number: number != 3,
        lambda number: number < 1,
        lambda number: 1 if number else 0,
        lambda number: float(number),
        lambda number: number in (0, 2),
    ],
)
def test_layers_that_compute_with_their_number_are_unlike(use: Callable[[int], Any]) -> None:
    def compute(self: Layer, x: Tensor, cache: GraphCache) -> Tensor:
        return x * float(bool(use(self.layer_idx)))

    with pytest.raises(UnlikeLayersError, match="its own number"):
        run([Layer(i, compute) for i in range(2)])


def test_layers_that_share_their_build_but_not_the_cache_are_unlike() -> None:
    layers = [Layer(0, cached), Layer(1, cached)]
    with pytest.raises(UnlikeLayersError, match="use the cache differently"):
        run(layers, (0,))


def test_a_layer_that_returns_more_than_tensors_is_unlike() -> None:
    with pytest.raises(UnlikeLayersError, match="something of its own"):
        run([Layer(i, lambda self, x, cache: (x, "text")) for i in range(2)])


def test_layers_are_as_before_after_a_trace_that_failed() -> None:
    layers = nn.ModuleList([Layer(0), Layer(1)])
    with pytest.raises(RuntimeError), traced_once(layers, GraphCache(context(), 2, True)):
        raise RuntimeError
    assert not any("forward" in layer.__dict__ for layer in layers)


def test_a_kind_is_the_first_layer_of_it() -> None:
    tracer = LayerTracer(nn.ModuleList([Layer(0), Layer(1)]), GraphCache(context(), 2, True))
    tracer.call(0, (torch.ones(2, 8), None), {})
    tracer.call(1, (torch.ones(2, 8), None), {})
    assert [kind.index for kind in tracer.kinds.values()] == [0]


def test_the_list_of_layers_is_the_outermost_of_its_length() -> None:
    inner = [nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(1, 1) for _ in range(2)])}) for _ in range(2)]
    model = nn.ModuleDict({"model": nn.ModuleDict({"layers": nn.ModuleList(inner)})})
    found = find_layers(model, 2)
    assert found is not None
    assert found[0] == "model.layers"


def lists(*lengths: int) -> nn.Module:
    return nn.ModuleDict({f"list{i}": nn.ModuleList([nn.Linear(1, 1)] * n) for i, n in enumerate(lengths)})


@pytest.mark.parametrize(("model", "count"), [(lists(3), 2), (lists(2, 2), 2), (lists(1), 1), (lists(), 2)])
def test_without_a_single_list_of_that_length_there_is_none(model: nn.Module, count: int) -> None:
    assert find_layers(model, count) is None
