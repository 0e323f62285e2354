"""Replacing the leaves of a model by the dialect's operators while a trace runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from truecast.dialects.model import Dialect, Emit

CLASS_SEAMS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Embedding)
"""Classes whose subclasses call `super().forward()` and add something: replaced at the class, so that both are met."""


@contextmanager
def lowered_leaves(model: nn.Module, dialect: Dialect) -> Iterator[Counter[str]]:
    """Replaces every module that one of the dialect's lowerings recognises; counts them by leaf; undone on exit."""
    found: Counter[str] = Counter()
    by_class: dict[type[nn.Module], dict[int, Emit]] = {kind: {} for kind in CLASS_SEAMS}
    with ExitStack() as stack:
        for name, module in model.named_modules():
            for lowering in dialect.modules:
                emit = lowering.recognise(name, module)
                if emit is None:
                    continue
                found[lowering.leaf] += 1
                kind = next((k for k in CLASS_SEAMS if isinstance(module, k)), None)
                if kind is not None:
                    by_class[kind][id(module)] = emit
                else:
                    stack.enter_context(_replaced_forward(module, emit))
                break
        for kind, emits in by_class.items():
            stack.enter_context(_replaced_class_forward(kind, emits))
        yield found


@contextmanager
def _replaced_forward(module: nn.Module, emit: Emit) -> Iterator[None]:
    module.forward = emit
    try:
        yield
    finally:
        del module.forward


@contextmanager
def _replaced_class_forward(kind: type[nn.Module], emits: dict[int, Emit]) -> Iterator[None]:
    original: Callable[..., Any] = kind.forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        emit = emits.get(id(self))
        return original(self, *args, **kwargs) if emit is None else emit(*args, **kwargs)

    kind.forward = forward
    try:
        yield
    finally:
        kind.forward = original
