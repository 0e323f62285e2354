"""From rows to a model's inputs: tokens by the model's own tokenizer, padded batches, and batches of an exact size.

Inputs are int64 arrays [rows, tokens]: input_ids, attention_mask, token_type_ids. Padding is on the right and masked.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from truecast.errors import InputError
from truecast.study.data import Examples
from truecast.study.plan import Data

Feeds = Mapping[str, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Tokens:
    """One row: its token ids, and the type of each (which text of a pair it belongs to)."""

    ids: tuple[int, ...]
    types: tuple[int, ...]

    def cut(self, length: int) -> Tokens:
        """The row at exactly `length` tokens: cut off, or repeated from its start."""
        times = -(-length // len(self.ids))
        return Tokens((self.ids * times)[:length], (self.types * times)[:length])


def tokenize(examples: Examples, data: Data, source: Path) -> list[Tokens]:
    """The tokens of every row, cut to the plan's length; raises InputError where the model has no tokenizer.json."""
    if examples.ids:
        return [Tokens(ids, (0,) * len(ids)) for ids in examples.ids]
    file = source / "tokenizer.json"
    if not file.is_file():
        raise InputError(f"{source} has no tokenizer.json, so texts cannot be read; name a column of data.token_ids.")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(data.max_length)
    pairs = [row if len(row) == 2 else row[0] for row in examples.texts]
    rows = [Tokens(tuple(one.ids), tuple(one.type_ids)) for one in tokenizer.encode_batch(pairs)]
    for number, row in enumerate(rows, 1):
        if not row.ids:
            raise InputError(f"{data.file}, row {number} has no tokens; take it out.")
    return rows


def padding_id(source: Path) -> int:
    """The token that fills up rows, by config.json; 0 where it names none, since the mask hides it."""
    try:
        found = json.loads((source / "config.json").read_text(encoding="utf-8")).get("pad_token_id")
    except (OSError, ValueError):
        return 0
    return found if isinstance(found, int) and found >= 0 else 0


def padded(rows: Sequence[Tokens], padding: int) -> Feeds:
    """One batch of rows, as long as its longest."""
    longest = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), longest), padding, dtype=np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = row.ids
        types[place, : len(row.ids)] = row.types
        mask[place, : len(row.ids)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def exact(rows: Sequence[Tokens], batch: int, length: int) -> Feeds:
    """A batch of exactly [batch, length] real tokens and no padding, from the rows in order."""
    return padded([rows[number % len(rows)].cut(length) for number in range(batch)], 0)


def chosen(feeds: Feeds, inputs: Collection[str]) -> Feeds:
    """The feeds that a model takes; raises InputError where it needs others."""
    missing = [name for name in inputs if name not in feeds]
    if missing:
        raise InputError(
            f"The model's input {missing[0]!r} cannot be made from text; a study feeds {', '.join(feeds)}."
        )
    return {name: feeds[name] for name in inputs}
