"""Replacing the leaves of a model by the dialect's operators while a trace runs."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.compiler import is_dynamo_compiling

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
            kind = next((k for k in CLASS_SEAMS if isinstance(module, k)), None)
            if kind is None and _takes_several(module):
                continue
            for lowering in dialect.modules:
                emit = lowering.recognise(name, module)
                if emit is None:
                    continue
                found[lowering.leaf] += 1
                if kind is not None:
                    by_class[kind][id(module)] = emit
                else:
                    stack.enter_context(_replaced_forward(module, emit))
                break
        for kind, emits in by_class.items():
            stack.enter_context(_replaced_class_forward(kind, emits))
        yield found


def _takes_several(module: nn.Module) -> bool:
    """Whether a module takes more than the one input that leaves are probed with: a norm may take a gate as well."""
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return sum(parameter.kind in named for parameter in inspect.signature(module.forward).parameters.values()) > 1


@contextmanager
def _replaced_forward(module: nn.Module, emit: Emit) -> Iterator[None]:
    author: Callable[..., Any] = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return author(*args, **kwargs) if is_dynamo_compiling() else emit(*_in_order(author, args, kwargs))

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


@contextmanager
def _replaced_class_forward(kind: type[nn.Module], emits: dict[int, Emit]) -> Iterator[None]:
    original: Callable[..., Any] = kind.forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        emit = emits.get(id(self))
        if emit is None or is_dynamo_compiling():  # inside torch.cond and its kind, which take no operators of ours
            return original(self, *args, **kwargs)
        return emit(*_in_order(partial(original, self), args, kwargs))

    kind.forward = forward
    try:
        yield
    finally:
        kind.forward = original


def _in_order(author: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
    """What an author's function was called with, all by place: operators know no names of inputs."""
    if not kwargs:
        return args
    return inspect.signature(author).bind(*args, **kwargs).args
