"""A second opinion on an exported decoder that shares no code with the package: ONNX Runtime against transformers.

The certificate is the package's own claim; this is what keeps the claim honest. It feeds the graph only what the graph
contract promises to any loader: a mask with padding on the left and a hole, several new tokens after a past, a long
sequence, and caches passed as ordinary arrays.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from tests.tiny import END_TOKEN_ID

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Scenario:
    """Tokens and mask [batch, sequence] (int64), fed in pieces of the given lengths, each with the cache so far."""

    tokens: Array
    mask: Array
    pieces: tuple[int, ...]


@dataclass(frozen=True)
class Agreement:
    """`error`: the largest difference of a logit over the largest logit; `cosine`: between all logits."""

    error: float
    cosine: float


def scenarios() -> list[Scenario]:
    """Short before long: some rotary embeddings remember the longest sequence they have seen.

    Several new tokens after a past come in a batch of one: ONNX Runtime's GroupQueryAttention refuses larger batches.
    """
    numbers = np.random.default_rng(0)
    padded = np.ones((2, 28), np.int64)
    padded[0, :7] = 0
    padded[1, 5] = 0
    return [
        Scenario(numbers.integers(0, END_TOKEN_ID, padded.shape), padded, (20, *(1,) * 8)),
        Scenario(numbers.integers(0, END_TOKEN_ID, (1, 65)), np.ones((1, 65), np.int64), (56, 8, 1)),
    ]


def compare(folder: Path, model: PreTrainedModel) -> Agreement:
    """The artifact in `folder` against the model over every scenario, at the positions that are not masked."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    pairs = [(graph_logits(session, it)[it.mask == 1], model_logits(model, it)[it.mask == 1]) for it in scenarios()]
    graph, reference = (np.concatenate([pair[side] for pair in pairs]).astype(np.float64) for side in (0, 1))
    cosine = float((graph * reference).sum() / (np.linalg.norm(graph) * np.linalg.norm(reference)))
    return Agreement(float(np.abs(graph - reference).max() / np.abs(reference).max()), cosine)


def graph_logits(session: onnxruntime.InferenceSession, scenario: Scenario) -> Array:
    """The graph's logits [batch, sequence, vocabulary] at every position."""
    batch = len(scenario.tokens)
    inputs = {argument.name: argument for argument in session.get_inputs()}
    outputs = [argument.name for argument in session.get_outputs()]
    cache = {
        name: np.zeros([batch, *(0 if isinstance(s, str) else s for s in argument.shape[1:])], _dtype(argument.type))
        for name, argument in inputs.items()
        if name.startswith("past_")
    }
    logits = []
    for piece in _pieces(scenario):
        fed = {name: array for name, array in piece.items() if name in inputs}
        results = dict(
            zip(outputs, session.run(None, fed | cache | {"num_logits_to_keep": np.array(0, np.int64)}), strict=True)
        )
        cache = {name: results[name.replace("past_key_values", "present").replace("past", "present")] for name in cache}
        logits.append(results["logits"])
    return np.concatenate(logits, axis=1)


@torch.no_grad()
def model_logits(model: PreTrainedModel, scenario: Scenario) -> Array:
    """The author's logits [batch, sequence, vocabulary] at every position, from the same pieces.

    A model of recurrent states takes what follows the first piece token by token; one of nothing else calls its cache
    otherwise, and takes a mask of its new positions.
    """
    cache = DynamicCache(config=model.config)
    recurs = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)
    cache = cache if recurs else DynamicCache()
    alone = "cache_params" in inspect.signature(model.forward).parameters
    first, *later = scenario.pieces
    fed = replace(scenario, pieces=(first, *(1,) * sum(later))) if recurs else scenario
    logits = []
    for piece in _pieces(fed):
        given: dict[str, Any] = {name: torch.from_numpy(array) for name, array in piece.items()}
        if alone:
            given["attention_mask"] = given["attention_mask"][:, -given["input_ids"].shape[1] :]
            given.pop("position_ids")
        logits.append(model(**given, **{"cache_params" if alone else "past_key_values": cache}).logits)
    return torch.cat(logits, dim=1).numpy()


def _pieces(scenario: Scenario) -> list[dict[str, Array]]:
    positions = np.maximum(scenario.mask.cumsum(axis=1) - 1, 0)
    ends = np.cumsum(scenario.pieces)
    return [
        {
            "input_ids": scenario.tokens[:, end - length : end],
            "attention_mask": scenario.mask[:, :end],
            "position_ids": positions[:, end - length : end],
        }
        for length, end in zip(scenario.pieces, ends, strict=True)
    ]


def _dtype(kind: str) -> type[np.generic]:
    return np.float16 if kind == "tensor(float16)" else np.float32
