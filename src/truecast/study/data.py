"""The rows of a study: a JSONL or CSV file → texts or token ids, and a label per row and output."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from truecast.errors import InputError
from truecast.study.plan import Data, nearest

Record = Mapping[str, Any]
CSV_FIELD_LIMIT = 1 << 27
"""Bytes of one field; Python's own limit of 128 KiB refuses long documents."""


@dataclass(frozen=True)
class Labels:
    """What one output should say: class numbers [rows] (int64), or scores [rows] (float64) to be ranked alike."""

    values: npt.NDArray[Any]

    @property
    def are_classes(self) -> bool:
        """Whether the values are numbers of classes."""
        return self.values.dtype.kind == "i"


@dataclass(frozen=True)
class Examples:
    """Either `texts` (one text or a pair per row) or `ids` (tokens per row), and the labels by output."""

    texts: tuple[tuple[str, ...], ...]
    ids: tuple[tuple[int, ...], ...]
    labels: Mapping[str, Labels]

    def __len__(self) -> int:
        return len(self.texts) or len(self.ids)


def read_examples(data: Data, source: Path) -> Examples:
    """Reads the file of a plan; `source` is the model's folder, whose config may name the classes.

    Raises:
        InputError: the file cannot be read, has no rows, lacks a column, or a row has a value that cannot be used.
    """
    records = list(_records(data.file, data.rows))
    if not records:
        raise InputError(f"{data.file} has no rows; a study needs one at least.")
    columns = data.columns
    for column in (*columns, *data.labels.values()):
        _require_column(records, column, data.file)
    texts: tuple[tuple[str, ...], ...] = ()
    ids: tuple[tuple[int, ...], ...] = ()
    if data.token_ids is not None:
        ids = tuple(_ids(record[data.token_ids], data, row) for row, record in enumerate(records, 1))
    else:
        texts = tuple(
            tuple(_text(record[name], name, data, row) for name in columns) for row, record in enumerate(records, 1)
        )
    return Examples(texts, ids, {output: _labels(records, output, data, source) for output in data.labels})


def _records(file: Path, most: int | None) -> Iterator[Record]:
    """The rows of a file, `most` of them, each a mapping from column to value."""
    readers = {".jsonl": _json_lines, ".json": _json_lines, ".csv": _csv_rows, ".tsv": _csv_rows}
    reader = readers.get(file.suffix.lower())
    if reader is None or not file.is_file():
        raise InputError(f"{file} is no data file; give one that ends in .jsonl, .csv or .tsv.")
    try:
        for number, record in enumerate(reader(file)):
            if number == most:
                return
            yield record
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read ({error}); save it as UTF-8.") from error


def _json_lines(file: Path) -> Iterator[Record]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{file}, line {number} is no JSON ({error}); write one object per line.") from error
            if not isinstance(record, dict):
                raise InputError(f"{file}, line {number} is no object; write one object per line.")
            yield record


def _csv_rows(file: Path) -> Iterator[Record]:
    csv.field_size_limit(CSV_FIELD_LIMIT)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.DictReader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")


def _require_column(records: Sequence[Record], column: str, file: Path) -> None:
    for row, record in enumerate(records, 1):
        if record.get(column) is None:
            if all(other.get(column) is None for other in records):
                names = dict.fromkeys(name for other in records for name in other if name)
                raise InputError(f"{file} has no column {column!r}; {nearest(column, names)}")
            raise InputError(f"{file}, row {row} has no {column!r}; fill it in or take the row out.")


def _text(value: Any, column: str, data: Data, row: int) -> str:
    if not isinstance(value, str):
        raise InputError(f"{data.file}, row {row}: {column!r} is {value!r} and not text; name another column.")
    return value


def _ids(value: Any, data: Data, row: int) -> tuple[int, ...]:
    """Token ids of a list, or of a text of numbers as CSV has it."""
    try:
        listed = value.replace(",", " ").strip(" []").split() if isinstance(value, str) else value
        ids = tuple(int(one) for one in listed)
    except (TypeError, ValueError):
        ids = ()
    if not ids or min(ids) < 0:
        raise InputError(f"{data.file}, row {row}: {data.token_ids!r} is no list of token ids; name another column.")
    return ids[: data.max_length]


def _labels(records: Sequence[Record], output: str, data: Data, source: Path) -> Labels:
    """The labels of one output: class numbers, class names by the model's order, or scores."""
    column = data.labels[output]
    values = [record[column] for record in records]
    names = data.classes.get(output) or ()
    if not names and any(_number(value) is None for value in values):
        names = _configured_classes(source)
        if not names:
            odd = next(value for value in values if _number(value) is None)
            raise InputError(
                f"{data.file}: column {column!r} holds {odd!r}, and the model does not say which class that is; "
                f"list the names in the model's order as data.classes.{output}."
            )
    if names:
        numbers = {name: number for number, name in enumerate(names)}
        for row, value in enumerate(values, 1):
            if str(value) not in numbers:
                raise InputError(
                    f"{data.file}, row {row}: {column!r} has no class {value!r}; {nearest(str(value), names)}"
                )
        return Labels(np.array([numbers[str(value)] for value in values], dtype=np.int64))
    floats = np.array([_number(value) for value in values], dtype=np.float64)
    if (floats == np.floor(floats)).all() and (floats >= 0).all() and not any(_fractional(value) for value in values):
        return Labels(floats.astype(np.int64))
    return Labels(floats)


def _number(value: Any) -> float | None:
    """The finite number that a label is, None where it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _fractional(value: Any) -> bool:
    """Whether a label is written as a score (2.0), not as a class (2)."""
    return isinstance(value, float) or (isinstance(value, str) and "." in value)


def _configured_classes(source: Path) -> tuple[str, ...]:
    """The class names of the model's config.json in its order; none where it names none."""
    try:
        names = json.loads((source / "config.json").read_text(encoding="utf-8"))["id2label"]
        return tuple(names[str(number)] for number in range(len(names)))
    except (OSError, ValueError, KeyError, TypeError):
        return ()
