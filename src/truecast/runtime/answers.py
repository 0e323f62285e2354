"""What an encoder's outputs say of one text, in the words of its task.

Data flow: text → outputs of the graph → labels, tokens or a vector, as config.json names them → lines to read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truecast.artifact import read_manifest
from truecast.errors import InputError
from truecast.runtime.encoder import Encoder, Tokens
from truecast.runtime.text import read_json

Array = NDArray[Any]
SHOWN = 5
"""Labels or tokens that are listed, the likeliest first."""
VECTORS = ("sentence_embedding", "pooler_output", "last_hidden_state")


@dataclass(frozen=True)
class Answer:
    """The answer to one text: `lines` to read, and `values` by name for programs."""

    task: str
    lines: tuple[str, ...]
    values: Mapping[str, Any]


def answer(folder: Path, text: str, provider: str = "cpu", threads: int | None = None) -> Answer:
    """Runs the encoder in `folder` on a text.

    Raises InputError when it takes no text, or when the text lacks the mask that is to be filled.
    """
    manifest = read_manifest(folder)
    if not any(tensor.name == "input_ids" for tensor in manifest.graph.inputs):
        raise InputError(f"{folder} takes no text; feed arrays with truecast.open(OUT).run(…).")
    tokens = Tokens.open(folder)
    feeds = tokens.batch([text])
    outputs = Encoder.open(folder, provider, threads).run(feeds)
    labels = {int(key): str(name) for key, name in read_json(folder / "config.json").get("id2label", {}).items()}
    if manifest.task == "text-classification":
        lines, values = _classes(outputs["logits"][0], labels)
    elif manifest.task == "token-classification":
        lines, values = _tagged(outputs["logits"][0], labels, _pieces(tokens, feeds))
    elif manifest.task == "fill-mask":
        lines, values = _filled(outputs["logits"][0], tokens, feeds)
    else:
        lines, values = _vectors(outputs)
    return Answer(manifest.task, tuple(lines), values)


def _softmax(scores: Array) -> Array:
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    result: Array = shifted / shifted.sum(-1, keepdims=True)
    return result


def _classes(scores: Array, labels: Mapping[int, str]) -> tuple[list[str], dict[str, Any]]:
    """One score is a relevance, as cross-encoders give; several are those of labels."""
    if len(scores) == 1:
        return [f"score {scores[0]:.4f}"], {"score": float(scores[0])}
    shares = _softmax(scores)
    order = np.argsort(-shares)[:SHOWN]
    named = {labels.get(int(i), f"LABEL_{i}"): float(shares[i]) for i in order}
    return [f"{share:6.1%}  {name}" for name, share in named.items()], {"labels": named}


def _pieces(tokens: Tokens, feeds: Mapping[str, Array]) -> list[str]:
    tokenizer = tokens.codec.tokenizer
    return [str(tokenizer.id_to_token(int(i))) for i in feeds["input_ids"][0]]


def _tagged(scores: Array, labels: Mapping[int, str], pieces: list[str]) -> tuple[list[str], dict[str, Any]]:
    found = [labels.get(int(i), f"LABEL_{i}") for i in scores.argmax(-1)]
    width = max(map(len, pieces), default=0)
    lines = [f"{piece:<{width}}  {label}" for piece, label in zip(pieces, found, strict=True)]
    return lines, {"tokens": pieces, "labels": found}


def _filled(scores: Array, tokens: Tokens, feeds: Mapping[str, Array]) -> tuple[list[str], dict[str, Any]]:
    mask = tokens.codec.special_tokens.get("mask_token")
    number = tokens.codec.tokenizer.token_to_id(mask) if mask is not None else None
    places: Array = np.flatnonzero(feeds["input_ids"][0] == number) if number is not None else np.zeros(0, np.int64)
    if not len(places):
        raise InputError(f"The text has no {mask or 'mask'}; write it where a word is to be filled in.")
    shares = _softmax(scores[places[0]])
    order = np.argsort(-shares)[:SHOWN]
    named = {tokens.codec.tokenizer.decode([int(i)]).strip(): float(shares[i]) for i in order}
    return [f"{share:6.1%}  {word}" for word, share in named.items()], {"tokens": named}


def _vectors(outputs: Mapping[str, Array]) -> tuple[list[str], dict[str, Any]]:
    """The shape of every output; of the first that is a vector, its length and how it begins."""
    lines = [f"{name}: {' x '.join(map(str, value.shape))}" for name, value in outputs.items()]
    vector = next((outputs[name][0] for name in VECTORS if name in outputs and outputs[name].ndim == 2), None)
    if vector is not None:
        begins = " ".join(f"{value:.4f}" for value in _begin(vector))
        lines.append(f"length {float(np.linalg.norm(vector)):.4f}, begins {begins} …")
    return lines, {name: value[0].tolist() for name, value in outputs.items() if value.ndim == 2}


def _begin(vector: Array) -> Iterator[float]:
    yield from (float(value) for value in vector[:SHOWN])
