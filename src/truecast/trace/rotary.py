"""The rotary seam: the author's `apply_rotary_pos_emb`, and frequencies that depend on the length.

transformers keeps the function that rotates queries and keys as a global of each modeling module; a model's layers look
it up by that name at every call, so replacing the global replaces it for all layers.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from truecast.dialects.model import RotaryForm, RotaryLowering

ROTARY_FUNCTION = "apply_rotary_pos_emb"


class RotarySeam:
    """Replaces an author's rotary function by the dialect's operator where the function is a plain rotation."""

    def __init__(self, function: Callable[..., Any], lowering: RotaryLowering) -> None:
        self.function, self.lowering = function, lowering
        self.forms: dict[int, RotaryForm | None] = {axis: lowering.recognise(function, axis) for axis in (1, 2)}
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The author's call `(q, k, cos, sin, unsqueeze_dim=1)`, rotated by the operator; others run as they are."""
        axis = kwargs.get("unsqueeze_dim", args[4] if len(args) == 5 else 1)
        form = self.forms.get(axis) if isinstance(axis, int) else None
        tensors = [x for x in args[:4] if isinstance(x, Tensor)]
        if form is None or set(kwargs) - {"unsqueeze_dim"} or [x.ndim for x in tensors] != [4, 4, 3, 3]:
            return self.function(*args, **kwargs)
        query, key, cos, sin = tensors
        if form.width(cos) != query.shape[-1] and not form.partial:
            return self.function(*args, **kwargs)
        self.calls += 1
        return tuple(self.lowering.emit(form, states, cos, sin) for states in (query, key))


@contextmanager
def rotary_seam(model: nn.Module, lowering: RotaryLowering | None) -> Iterator[list[RotarySeam]]:
    """Replaces the rotary functions of the modules that `model` is made of; undone on exit."""
    modules = {name: sys.modules[name] for name in sorted({type(m).__module__ for m in model.modules()})}
    originals = {name: vars(m)[ROTARY_FUNCTION] for name, m in modules.items() if ROTARY_FUNCTION in vars(m)}
    seams = {name: RotarySeam(function, lowering) for name, function in originals.items()} if lowering else {}
    try:
        for name, seam in seams.items():
            setattr(modules[name], ROTARY_FUNCTION, seam)
        yield list(seams.values())
    finally:
        for name in seams:
            setattr(modules[name], ROTARY_FUNCTION, originals[name])


def _frequencies(module: Any, position_ids: Tensor, layer_type: str | None) -> Tensor:
    """Inverse frequencies for the longest position of this call, as the author's own functions define them.

    dynamic: recomputed for every length above the trained one. longrope: one of two sets, by length.
    """
    prefix = f"{layer_type}_" if layer_type else ""
    kind = module.rope_type[layer_type] if layer_type else module.rope_type
    config: Any = module.config
    length = position_ids.max() + 1
    initial: Tensor = getattr(module, f"{prefix}original_inv_freq")
    options = {"layer_type": layer_type} if layer_type else {}
    if kind == "longrope":
        rope = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
        trained = rope["original_max_position_embeddings"]
        with _disable_current_modes():  # a constant: its data is wanted
            long, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=trained + 1, **options)
        return torch.where(length > trained, long, initial)
    grown, _ = ROPE_INIT_FUNCTIONS[kind](config, position_ids.device, seq_len=length, **options)
    return torch.where(length > module.original_max_seq_len, grown, initial)


def _depends_on_length(module: nn.Module) -> bool:
    kinds = getattr(module, "rope_type", None)
    values = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(isinstance(kind, str) and ("dynamic" in kind or kind == "longrope") for kind in values)


@contextmanager
def functional_frequencies(model: nn.Module) -> Iterator[None]:
    """Makes rotary modules whose frequencies depend on the length pure functions of the position ids; undone on exit.

    transformers updates a buffer of the module instead, which a graph cannot keep from step to step.
    """
    changed: list[nn.Module] = []
    for module in model.modules():
        if not _depends_on_length(module):
            continue
        plain = inspect.unwrap(type(module).forward)
        if plain is type(module).forward:
            continue
        module.forward = _pure_forward(module, plain)
        changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _pure_forward(module: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(plain)
    def forward(x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        name = f"{layer_type}_inv_freq" if layer_type else "inv_freq"
        kind = module.rope_type[layer_type] if layer_type else module.rope_type
        stored = module._buffers[name]
        options = {"layer_type": layer_type} if layer_type else {}
        try:
            if "dynamic" in kind or kind == "longrope":
                module._buffers[name] = _frequencies(module, position_ids, layer_type)
            return plain(module, x, position_ids, **options)
        finally:
            module._buffers[name] = stored

    return forward
