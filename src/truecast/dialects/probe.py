"""Probing the author's code with small random numbers: does it compute what an operator computes?"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

PROBE_SEED = 20_240_229
PROBE_TOLERANCE = 2e-5
"""Largest relative difference taken for the same formula. Authors cast to float32 inside a float64 call (norms,
softmax), which leaves about 1e-6; a different formula is off by far more on the probes used."""


def agrees(got: Any, expected: Tensor) -> bool:
    """True when `got` is a finite tensor of the shape of `expected` and equal to it up to float32's rounding."""
    if not isinstance(got, Tensor) or got.shape != expected.shape or not torch.isfinite(got).all():
        return False
    difference = (got.to(torch.float64) - expected).abs().max()
    return bool(difference <= PROBE_TOLERANCE * expected.abs().max())


def author_call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls the author's code on probe values; None when it does not take them, which means: not this formula."""
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # of what it was never meant for
            return function(*args, **kwargs)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, AssertionError):
        return None


def with_random_weights(module: nn.Module) -> nn.Module:
    """A float64 copy of a small module (no children, no buffers) whose parameters are random, around 1."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    twin = copy.copy(module)
    twin.__dict__["_parameters"] = {
        name: None
        if parameter is None
        else nn.Parameter(1 + torch.rand(parameter.shape, generator=generator, dtype=torch.float64))
        for name, parameter in module._parameters.items()
    }
    return twin


def structure(module: nn.Module) -> tuple[Any, ...]:
    """What, besides the values of its weights, decides what a module computes: class, settings, shapes, children.

    The position of a layer (`layer_idx`) is left out; whoever relies on this must see to it that it is not used.
    """
    settings = tuple(
        (key, _setting(value))
        for key, value in sorted(module.__dict__.items())
        if not key.startswith("_") and key not in ("layer_idx", "forward")
    )
    tensors = tuple(
        (name, None if tensor is None else (tuple(tensor.shape), tensor.dtype))
        for group in (module._parameters, module._buffers)
        for name, tensor in group.items()
    )
    children = tuple((name, structure(child)) for name, child in module.named_children())
    return (type(module), settings, tensors, children)


def _setting(value: Any) -> Any:
    """A stand-in that is equal where the setting means the same; unknown objects equal only themselves."""
    if isinstance(value, functools.partial):
        return ("partial", _setting(value.func), _setting(value.args), tuple(sorted(value.keywords.items())))
    if isinstance(value, MethodType):
        return ("method", id(value.__func__))
    return repr(value) if isinstance(value, PLAIN_SETTINGS) else id(value)


PLAIN_SETTINGS = (bool, int, float, str, type(None), tuple, list, torch.dtype)
"""Settings whose repr says all that they are."""
