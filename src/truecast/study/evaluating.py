"""How well a variant does: its outputs over all rows, against the labels and against PyTorch in float32.

Data flow: token rows, shortest first → padded batches → outputs → `Collected` by output, in the file's order → scores.

An output with one vector per token is kept twice: the mean over each row's tokens, for all rows, and all real tokens of
the first TOKEN_ROWS rows, because a mean hides errors that average out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from truecast.errors import InputError
from truecast.measure.scores import accuracy, cosines, macro_f1, pairwise_similarities, spearman
from truecast.study.data import Labels
from truecast.study.feeds import Tokens, padded
from truecast.study.opening import Opened
from truecast.study.plan import nearest
from truecast.study.results import Head, Likeness

TOKEN_ROWS = 64
"""Rows of which every token is compared."""
SIMILAR_ROWS = 1000
"""Rows whose similarities among each other are ranked: half a million pairs."""

Floats = npt.NDArray[np.float32]


@dataclass
class Collected:
    """One output over all rows: `vectors` [rows, size], and `tokens`, [tokens, size] of each of the first rows."""

    vectors: Floats
    tokens: list[Floats] = field(default_factory=list)

    @property
    def per_token(self) -> bool:
        """Whether the output has a vector for every token."""
        return bool(self.tokens)


def collect(model: Opened, rows: Sequence[Tokens], batch: int, padding: int) -> dict[str, Collected]:
    """Runs all rows, `batch` at a time, and keeps every float output."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
    found: dict[str, Collected] = {}
    for start in range(0, len(order), batch):
        numbers = order[start : start + batch]
        feeds = padded([rows[number] for number in numbers], padding)
        outputs = model.named(model.prepare(feeds)())
        lengths = [len(rows[number].ids) for number in numbers]
        for name, value in outputs.items():
            if value.ndim and len(value) == len(numbers):
                _keep(found, name, value, numbers, lengths, len(rows))
    return found


def _keep(
    found: dict[str, Collected], name: str, value: Floats, numbers: list[int], lengths: list[int], rows: int
) -> None:
    """Puts a batch's output [batch, …] in place."""
    per_token = value.ndim == 3 and value.shape[1] == max(lengths)
    flat = value if per_token else value.reshape(len(value), -1)
    if name not in found:
        tokens = [np.empty((0, 0), np.float32)] * min(rows, TOKEN_ROWS) if per_token else []
        found[name] = Collected(np.zeros((rows, flat.shape[-1]), np.float32), tokens)
    kept = found[name]
    if per_token != kept.per_token or flat.shape[-1] != kept.vectors.shape[1]:
        raise InputError(f"The output {name!r} has another size for other lengths of text; a study cannot compare it.")
    for place, number in enumerate(numbers):
        real = flat[place, : lengths[place]] if per_token else flat[place]
        kept.vectors[number] = real.mean(axis=0) if per_token else real
        if per_token and number < TOKEN_ROWS:
            kept.tokens[number] = np.array(real)


def save(found: Mapping[str, Collected], file: Path) -> None:
    """Writes outputs to an npz file."""
    arrays: dict[str, Any] = {}
    for name, one in found.items():
        arrays[f"{name}/vectors"] = one.vectors
        arrays |= {f"{name}/tokens/{number}": tokens for number, tokens in enumerate(one.tokens)}
    partial = file.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.replace(file)


def load(file: Path) -> dict[str, Collected]:
    """Reads what `save` wrote."""
    with np.load(file) as arrays:
        names = [name.removesuffix("/vectors") for name in arrays.files if name.endswith("/vectors")]
        return {
            name: Collected(
                arrays[f"{name}/vectors"],
                [arrays[key] for key in arrays.files if key.startswith(f"{name}/tokens/")],
            )
            for name in names
        }


def heads(
    found: Mapping[str, Collected], labels: Mapping[str, Labels], reference: Mapping[str, Collected]
) -> list[Head]:
    """The scores of every labelled output.

    Raises:
        InputError: an output does not exist, has one vector per token, or has fewer classes than the labels.
    """
    return [_head(name, found, label, reference) for name, label in labels.items()]


def _head(name: str, found: Mapping[str, Collected], labels: Labels, reference: Mapping[str, Collected]) -> Head:
    if name not in found:
        raise InputError(f"The model has no output {name!r} for data.labels; {nearest(name, found)}")
    output, rows = found[name], len(labels.values)
    if output.per_token:
        raise InputError(f"The output {name!r} has a vector for every token; labels of whole rows do not fit it.")
    classes = output.vectors.shape[1]
    if not labels.are_classes:
        if classes != 1:
            raise InputError(
                f"The labels of {name!r} are scores, but the output has {classes} values for a row, not 1."
            )
        return Head(output=name, rows=rows, spearman=_finite(spearman(output.vectors[:, 0], labels.values)))
    if classes <= labels.values.max():
        raise InputError(
            f"The labels of {name!r} go up to class {labels.values.max()}, but the output has {classes} classes, "
            "counted from 0; check data.labels and data.classes."
        )
    predicted = output.vectors.argmax(axis=1)
    return Head(
        output=name,
        rows=rows,
        accuracy=accuracy(labels.values, predicted),
        macro_f1=macro_f1(labels.values, predicted),
        agreement=accuracy(reference[name].vectors.argmax(axis=1), predicted),
    )


def likenesses(
    found: Mapping[str, Collected], reference: Mapping[str, Collected]
) -> tuple[list[Likeness], tuple[str, ...]]:
    """Every output against float32's, and the names of float32's outputs that the variant does not have.

    Raises InputError where none is there, or one has another size.
    """
    shared = [name for name in reference if name in found]
    if not shared:
        raise InputError(f"The variant has none of the outputs {', '.join(reference)}; it has {', '.join(found)}.")
    missing = tuple(name for name in reference if name not in found)
    return [_likeness(name, found[name], reference[name]) for name in shared], missing


def _likeness(name: str, own: Collected, reference: Collected) -> Likeness:
    if own.vectors.shape != reference.vectors.shape or own.per_token != reference.per_token:
        raise InputError(
            f"The output {name!r} has the shape {list(own.vectors.shape)} over all rows, "
            f"not {list(reference.vectors.shape)} as in PyTorch."
        )
    if own.per_token:
        pairs = zip(own.tokens, reference.tokens, strict=True)
        similar = np.array([cosines(left.reshape(1, -1), right.reshape(1, -1))[0] for left, right in pairs])
    else:
        similar = cosines(own.vectors, reference.vectors)
    order = None
    if min(len(own.vectors), SIMILAR_ROWS) > 2 and own.vectors.shape[1] > 1:
        ranked = [pairwise_similarities(one.vectors[:SIMILAR_ROWS]) for one in (own, reference)]
        order = _finite(spearman(*ranked))
    return Likeness(
        output=name,
        rows=len(similar),
        cosine=_finite(float(similar.mean())),
        lowest_cosine=_finite(float(similar.min())),
        spearman=order,
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
