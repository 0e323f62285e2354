"""What one GGUF tensor is in transformers: itself, or several parameters that share its rows.

Data flow: tensor entry and its target → (parameter name, the entry of its rows) each; metadata of one number per block
→ parameters that have no tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from truecast.checkpoint.gguf.container import TensorEntry
from truecast.checkpoint.gguf.metadata import Facts
from truecast.checkpoint.gguf.names import PER_ROW, Naming, Target
from truecast.checkpoint.model import Array, FileRange, StoredTensor
from truecast.errors import InputError


def pieces(facts: Facts, target: Target, entry: TensorEntry) -> list[tuple[str, TensorEntry]]:
    """Each parameter that `entry` holds, by name, with the entry of its own rows.

    Raises:
        InputError: the rows are not those of the heads that the metadata state.
    """
    name, *more = target.names
    if PER_ROW in name:
        rows = [_rows(entry, row, row + 1) for row in range(entry.shape[0])]
        return [(name.format(row), replace(one, shape=one.shape[1:])) for row, one in enumerate(rows)]
    if not more:
        return [(name, entry)]
    dim, rest = divmod(entry.shape[0], facts.heads + 2 * facts.kv_heads)
    if rest or entry.nbytes % entry.shape[0]:
        raise InputError(
            f"{entry.path}: the {entry.shape[0]} rows of {entry.name} do not fit {facts.heads} query and "
            f"{facts.kv_heads} key heads; convert the model again."
        )
    bounds = itertools.accumulate((facts.heads * dim, facts.kv_heads * dim, facts.kv_heads * dim), initial=0)
    runs = itertools.pairwise(bounds)
    return [(name, _rows(entry, *run)) for name, run in zip(target.names, runs, strict=True)]


def _rows(entry: TensorEntry, start: int, stop: int) -> TensorEntry:
    row_bytes = entry.nbytes // entry.shape[0]
    return replace(
        entry,
        shape=(stop - start, *entry.shape[1:]),
        offset=entry.offset + start * row_bytes,
        nbytes=(stop - start) * row_bytes,
    )


def number_tensors(facts: Facts, naming: Naming) -> Iterator[StoredTensor]:
    """The parameters that a file keeps as metadata, one number per block.

    Raises:
        InputError: there is not one number for every block.
    """
    path = facts.container.path
    for key, (leaf, shape) in naming.numbers.items():
        values = facts.container.metadata.get(key)
        if not isinstance(values, np.ndarray) or len(values) != facts.layers:
            raise InputError(f"{path} has not one {key} for each block in its metadata; convert the model again.")
        for block, value in enumerate(values.astype(np.float32)):
            yield _number(f"{naming.blocks}.{block}.{leaf}", shape, value.reshape(1), FileRange(path, 0, 0))


def _number(name: str, shape: tuple[int, ...], value: Array, location: FileRange) -> StoredTensor:
    return StoredTensor(name, shape, value.dtype, "F32", location, lambda start, stop: value[start:stop])
