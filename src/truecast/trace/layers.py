"""Tracing each kind of layer once.

Data flow: during the trace, the first layer of a kind runs between the markers `truecast::Enter` and `truecast::Exit`,
and every other layer of that kind leaves a single `truecast::Layer` without a cache → after it, `stamp` copies the
marked nodes in place of each of those, under its own weight names and with its own past and present. So a trace hardly
takes longer for a deeper model.

Two layers are of one kind when their modules are built alike (`structure`) and they are called alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from truecast.dialects.probe import structure
from truecast.trace.caches import GraphCache
from truecast.trace.context import StepContext

DOMAIN = "truecast"
ENTER, EXIT, LAYER = "Enter", "Exit", "Layer"


class UnlikeLayersError(Exception):
    """The layers cannot be stamped out from one another; the model is traced layer by layer instead."""


class _LayerIndex(int):
    """A layer's number that notices when code computes with it, which makes the layer unlike its twins."""

    used = False


def _noticing(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def method(self: _LayerIndex, *args: Any) -> Any:
        self.used = True
        return plain(self, *args)

    return method


COMPUTATIONS = "add radd sub rsub mul rmul truediv rtruediv floordiv mod pow neg lt le gt ge eq ne bool float"
for _name in COMPUTATIONS.split():
    setattr(_LayerIndex, f"__{_name}__", _noticing(f"__{_name}__"))


def find_layers(model: nn.Module, count: int) -> tuple[str, nn.ModuleList] | None:
    """The list of the model's `count` layers and its name, or None when there is no single such list."""
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    outermost = [(n, m) for n, m in lists if not any(n.startswith(f"{other}.") for other, _ in lists)]
    return outermost[0] if len(outermost) == 1 and count > 1 else None


def mark(kind: str, inputs: Sequence[Tensor], attributes: Mapping[str, int], like: Sequence[Tensor]) -> list[Tensor]:
    """A marker operator of our own domain whose outputs have the shapes and dtypes of `like`."""
    outputs = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{kind}",
        inputs,
        dict(attributes),
        dtypes=[x.dtype for x in like],
        shapes=[x.shape for x in like],
        version=1,
    )
    return list(outputs)


@dataclass(frozen=True)
class _Kind:
    """The first layer of a kind: its number, what it returned, and the parts of its state."""

    index: int
    outputs: list[Tensor]
    spec: Any
    parts: tuple[str, ...]


class LayerTracer:
    """Runs the first layer of every kind and leaves a marker for the others."""

    def __init__(self, layers: nn.ModuleList, cache: GraphCache) -> None:
        self.layers, self.cache = layers, cache
        self.kinds: dict[Any, _Kind] = {}
        self._forwards = [layer.forward for layer in layers]
        self._structures = [structure(layer) for layer in layers]

    def call(self, index: int, args: Any, kwargs: Any) -> Any:
        """Stands in for `layers[index].forward(*args, **kwargs)`."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        others = tuple(None if isinstance(leaf, Tensor) else _comparable(leaf) for leaf in leaves)
        key = (self._structures[index], spec, others)
        context = self.cache.context
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)] + context.shared()
        kind = self.kinds.get(key)
        if kind is None:
            return self._run(index, key, leaves, spec, inputs)
        if kind.parts != _parts(context, index):
            raise UnlikeLayersError("layers built alike use the cache differently")
        outputs = mark(LAYER, inputs, {"layer": index, "like": kind.index}, kind.outputs)
        return pytree.tree_unflatten(outputs, kind.spec)

    def _run(self, index: int, key: Any, leaves: list[Any], spec: Any, inputs: list[Tensor]) -> Any:
        context = self.cache.context
        states = context.states.get(index, ())
        inputs = inputs + context.pasts(index)
        entered = iter(mark(ENTER, inputs, {"layer": index}, inputs))
        leaves = [next(entered) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        inner = context.with_shared([next(entered) for _ in context.shared()])
        inner.past = dict(zip((state.past for state in states), entered, strict=True))
        inner.present = {}
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        result = self._forward(index, inner, args, kwargs)
        outputs, out_spec = pytree.tree_flatten(result)
        if not all(isinstance(x, Tensor) for x in outputs) or set(inner.present) != {s.present for s in states}:
            raise UnlikeLayersError("a layer returns or caches something of its own")
        self.kinds[key] = _Kind(index, outputs, out_spec, _parts(context, index))
        outputs = outputs + [inner.present[state.present] for state in states]
        results = mark(EXIT, outputs, {"layer": index}, outputs)
        left = len(outputs) - len(states)
        context.present.update(zip((state.present for state in states), results[left:], strict=True))
        return pytree.tree_unflatten(results[:left], out_spec)

    def _forward(self, index: int, inner: StepContext, args: Any, kwargs: Any) -> Any:
        outer, self.cache.context = self.cache.context, inner
        numbers = _number_layers(self.layers[index])
        try:
            result = self._forwards[index](*args, **kwargs)
        finally:
            self.cache.context = outer
        if any(number.used for number in numbers):
            raise UnlikeLayersError("a layer computes with its own number")
        return result


def _parts(context: StepContext, index: int) -> tuple[str, ...]:
    """The parts of a layer's state."""
    return tuple(state.part for state in context.states.get(index, ()))


def _comparable(value: Any) -> Any:
    """A stand-in for a non-tensor argument that is equal where the argument means the same."""
    if isinstance(value, GraphCache):
        return "cache"
    return repr(value) if isinstance(value, bool | int | float | str | None) or hasattr(value, "window") else id(value)


def _number_layers(layer: nn.Module) -> list[_LayerIndex]:
    """Makes every `layer_idx` below `layer` one that notices being computed with."""
    numbers = []
    for module in layer.modules():
        number = module.__dict__.get("layer_idx")
        if isinstance(number, int):
            numbers.append(_LayerIndex(number))
            module.__dict__["layer_idx"] = numbers[-1]
    return numbers


@contextmanager
def traced_once(layers: nn.ModuleList, cache: GraphCache) -> Iterator[LayerTracer]:
    """Makes each kind of layer run once; undone on exit."""
    tracer = LayerTracer(layers, cache)
    replaced = [layer.__dict__.get("forward") for layer in layers]

    def stand_in(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return tracer.call(index, args, kwargs)

        return forward

    try:
        for index, layer in enumerate(layers):
            layer.forward = stand_in(index)
        yield tracer
    finally:
        for layer, before in zip(layers, replaced, strict=True):
            if before is None:
                del layer.forward
            else:
                layer.forward = before
