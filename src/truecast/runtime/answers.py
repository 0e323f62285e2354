"""What an encoder's outputs say of one text, in the words of its task.

Data flow: text → outputs of the graph → labels, tokens or a vector, as config.json names them → lines to read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
LONGEST_ANSWER = 30
"""Tokens of the answer to a question at most."""
SEVERAL, NUMBERS = "multi_label_classification", "regression"
"""Values of `problem_type` in config.json; others mean one label of several."""


@dataclass(frozen=True)
class Answer:
    """The answer to one text: `lines` to read, and `values` by name for programs."""

    task: str
    lines: tuple[str, ...]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class _Asked:
    """One text, or a pair, as the graph takes it."""

    tokens: Tokens
    feeds: Mapping[str, Array]
    row: Any
    pair: str | None
    config: Mapping[str, Any]

    @property
    def labels(self) -> dict[int, str]:
        return {int(key): str(name) for key, name in (self.config.get("id2label") or {}).items()}


def answer(
    folder: Path, text: str, pair: str | None = None, provider: str = "cpu", threads: int | None = None
) -> Answer:
    """Runs the encoder in `folder` on a text, or on a pair of them: query and passage, question and context.

    Raises InputError when it takes no text, when the text lacks the mask that is to be filled, or a question its
    context.
    """
    manifest = read_manifest(folder)
    if not any(tensor.name == "input_ids" for tensor in manifest.graph.inputs):
        raise InputError(f"{folder} takes no text; feed arrays with truecast.open(OUT).run(…).")
    tokens, pairs = Tokens.open(folder), None if pair is None else [pair]
    feeds, row = tokens.batch([text], pairs=pairs), tokens.encodings([text], pairs=pairs)[0]
    asked = _Asked(tokens, feeds, row, pair, read_json(folder / "config.json"))
    outputs = Encoder.open(folder, provider, threads).run(feeds)
    lines, values = ANSWERS.get(manifest.task, _vectors)(asked, outputs)
    return Answer(manifest.task, tuple(lines), values)


Lines = tuple[list[str], dict[str, Any]]


def _softmax(scores: Array) -> Array:
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    result: Array = shifted / shifted.sum(-1, keepdims=True)
    return result


def _sigmoid(scores: Array) -> Array:
    result: Array = 0.5 * (1 + np.tanh(0.5 * scores.astype(np.float64)))
    return result


def _classes(asked: _Asked, outputs: Mapping[str, Array]) -> Lines:
    """One score is a relevance, as cross-encoders give; several are of labels: shares, chances or plain numbers."""
    scores, problem = outputs["logits"][0], asked.config.get("problem_type")
    if len(scores) == 1:
        score = float((_sigmoid(scores) if _wants_sigmoid(asked.config) or problem == SEVERAL else scores)[0])
        return [f"score {score:.4f}"], {"score": score}
    values = scores if problem == NUMBERS else _sigmoid(scores) if problem == SEVERAL else _softmax(scores)
    order = np.argsort(-values)[: len(values) if problem == NUMBERS else SHOWN]
    named = {asked.labels.get(int(i), f"LABEL_{i}"): float(values[i]) for i in order}
    form = "{:8.4f}" if problem == NUMBERS else "{:6.1%}"
    return [f"{form.format(value)}  {name}" for name, value in named.items()], {"labels": named}


def _wants_sigmoid(config: Mapping[str, Any]) -> bool:
    """Whether config.json names it as what sentence-transformers puts behind the score of a cross-encoder."""
    named = (config.get("sentence_transformers") or {}).get("activation_fn")
    return str(named or config.get("sbert_ce_default_activation_function")).endswith(".Sigmoid")


def _tagged(asked: _Asked, outputs: Mapping[str, Array]) -> Lines:
    """The label of every token of the text; those that a tokenizer puts around it are left out."""
    best = outputs["logits"][0].argmax(-1)
    kept = [i for i, special in enumerate(asked.row.special_tokens_mask) if not special]
    pieces = [asked.row.tokens[i] for i in kept]
    found = [asked.labels.get(int(best[i]), f"LABEL_{best[i]}") for i in kept]
    width = max(map(len, pieces), default=0)
    lines = [f"{piece:<{width}}  {label}" for piece, label in zip(pieces, found, strict=True)]
    return lines, {"tokens": pieces, "labels": found}


def _span(asked: _Asked, outputs: Mapping[str, Array]) -> Lines:
    """The likeliest run of tokens of the context, as its text."""
    if asked.pair is None:
        raise InputError("A question needs a text to find its answer in; give it with --pair (pair=…).")
    start, end = (outputs[name][0].astype(np.float64) for name in ("start_logits", "end_logits"))
    inside = np.array([part == 1 for part in asked.row.sequence_ids])
    scores = start[:, None] + end[None, :]
    allowed = np.triu(inside[:, None] & inside[None, :]) & ~np.triu(np.ones_like(scores, bool), LONGEST_ANSWER)
    if not allowed.any():
        raise InputError("Nothing of the text to find the answer in is left behind the question; shorten the question.")
    first, last = np.unravel_index(int(np.where(allowed, scores, -np.inf).argmax()), scores.shape)
    share = float(_softmax(start)[first] * _softmax(end)[last])
    text = asked.pair[asked.row.offsets[first][0] : asked.row.offsets[last][1]]
    return [f"{share:6.1%}  {text}"], {"answer": text, "score": share}


def _filled(asked: _Asked, outputs: Mapping[str, Array]) -> Lines:
    """The likeliest words in place of the first mask."""
    scores, tokens, feeds = outputs["logits"][0], asked.tokens, asked.feeds
    mask = tokens.codec.special_tokens.get("mask_token")
    number = tokens.codec.tokenizer.token_to_id(mask) if mask is not None else None
    places: Array = np.flatnonzero(feeds["input_ids"][0] == number) if number is not None else np.zeros(0, np.int64)
    if not len(places):
        raise InputError(f"The text has no {mask or 'mask'}; write it where a word is to be filled in.")
    shares = _softmax(scores[places[0]])
    order = np.argsort(-shares)[:SHOWN]
    named = {tokens.codec.tokenizer.decode([int(i)]).strip(): float(shares[i]) for i in order}
    return [f"{share:6.1%}  {word}" for word, share in named.items()], {"tokens": named}


def _vectors(asked: _Asked, outputs: Mapping[str, Array]) -> Lines:
    """The shape of every output, and how the sentence's vector begins; no other output is one."""
    lines = [f"{name}: {' x '.join(map(str, value.shape))}" for name, value in outputs.items()]
    if SENTENCE in outputs:
        vector = outputs[SENTENCE][0]
        begins = " ".join(f"{value:.4f}" for value in vector[:SHOWN])
        lines.append(f"length {float(np.linalg.norm(vector)):.4f}, begins {begins} …")
    return lines, {name: value[0].tolist() for name, value in outputs.items() if value.ndim == 2}


SENTENCE = "sentence_embedding"
ANSWERS: Mapping[str, Callable[[_Asked, Mapping[str, Array]], Lines]] = {
    "text-classification": _classes,
    "token-classification": _tagged,
    "question-answering": _span,
    "fill-mask": _filled,
}
"""What is said of the outputs, by task; of others, their shapes."""
