"""What makes one vector of a text's tokens, as a sentence-transformers folder says it.

The formulas are those of sentence-transformers' Pooling and Normalize modules; the proof compares with the package
itself where it is installed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from truecast.checkpoint.model import Checkpoint
from truecast.checkpoint.tasks import MODULES_FILE
from truecast.errors import InputError

Tensors = Mapping[str, Tensor]
Finish = Callable[[Tensors, Tensors], dict[str, Tensor]]
"""(outputs, inputs) → outputs, more of them."""
TOKENS, SENTENCE = "last_hidden_state", "sentence_embedding"
LEAST_COUNT = 1e-9
"""Divides instead of a count of no tokens at all, as in sentence-transformers."""


def read_pooling(checkpoint: Checkpoint) -> Finish | None:
    """The modules that follow the encoder, as one function; None when one of them is of another kind."""
    steps: list[Callable[[Tensor, Tensor], Tensor]] = []
    for module in json.loads(checkpoint.side_files[MODULES_FILE]()):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            step = _pooling(_settings(checkpoint, str(module.get("path", ""))))
        elif kind == "Normalize":
            step = _normalized
        elif kind == "Transformer" and not module.get("path"):
            continue
        else:
            return None
        if step is None:
            return None
        steps.append(step)

    def finish(outputs: Tensors, inputs: Tensors) -> dict[str, Tensor]:
        value = outputs[TOKENS]
        for step in steps:
            value = step(value, inputs["attention_mask"])
        return {TOKENS: outputs[TOKENS], SENTENCE: value}

    return finish


def _settings(checkpoint: Checkpoint, path: str) -> Mapping[str, Any]:
    name = f"{path}/config.json"
    if name not in checkpoint.side_files:
        raise InputError(f"{checkpoint.path} has no {name}, which {MODULES_FILE} names; download the folder again.")
    settings: Mapping[str, Any] = json.loads(checkpoint.side_files[name]())
    return settings


def _pooling(settings: Mapping[str, Any]) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The pooling that is switched on; None for several at once, or another kind."""
    chosen = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    mode = settings.get("pooling_mode")
    names = [str(mode)] if isinstance(mode, str) else [key.removeprefix("pooling_mode_") for key in chosen]
    return POOLINGS.get(names[0]) if len(names) == 1 else None


def _mean(tokens: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=LEAST_COUNT)


def _mean_root(tokens: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=LEAST_COUNT).sqrt()


def _largest(tokens: Tensor, mask: Tensor) -> Tensor:
    return tokens.masked_fill(mask.unsqueeze(-1) == 0, torch.finfo(tokens.dtype).min).amax(1)


def _first(tokens: Tensor, mask: Tensor) -> Tensor:
    return tokens[:, 0]


def _normalized(value: Tensor, mask: Tensor) -> Tensor:
    return nn.functional.normalize(value, p=2.0, dim=1)


POOLINGS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean_tokens": _mean,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_root,
    "max_tokens": _largest,
    "max": _largest,
    "cls_token": _first,
    "cls": _first,
}
