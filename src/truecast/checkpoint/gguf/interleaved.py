"""Experts that transformers has as [experts, in, out], the outputs of gate and up taking turns (gpt-oss).

Data flow: a tensor for each expert's gate, up and down → stacks of them, whose rows take turns → what reads them
transposed; `matrices` keeps the file's own blocks, for operators that want [out, in]. Biases take turns alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from truecast.checkpoint.model import Array, StoredTensor
from truecast.checkpoint.stacks import reordered, stack, taking_turns
from truecast.errors import InputError

MEMBER = re.compile(r"(?P<module>.*\.experts)\.(?P<expert>\d+)\.(?P<part>gate|up|down)_proj\.(?P<kind>weight|bias)")
STACKS = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}
SUFFIXES = {"weight": "", "bias": "_bias"}


def turned(path: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of the file at `path` with those of experts joined to parameters.

    Raises:
        InputError: a matrix or a bias is missing, or they do not fit each other.
    """
    rest: dict[str, StoredTensor] = {}
    members: dict[tuple[str, str], dict[tuple[str, int], StoredTensor]] = {}
    for name, tensor in tensors.items():
        if match := MEMBER.fullmatch(name):
            group = members.setdefault((match["module"], match["kind"]), {})
            group[match["part"], int(match["expert"])] = tensor
        else:
            rest[name] = tensor
    for (module, kind), group in members.items():
        count = 1 + max(expert for _, expert in group)
        for leaf, parts in STACKS.items():
            rows = [[group.get((part, expert)) for part in parts] for expert in range(count)]
            whole = [[tensor for tensor in row if tensor is not None] for row in rows]
            name = f"{module}.{leaf}{SUFFIXES[kind]}"
            if any(len(row) < len(parts) for row in whole):
                raise InputError(f"{path} lacks tensors of {name}; download it again.")
            rest[name] = _weight(name, whole) if kind == "weight" else _bias(path, name, whole)
    return rest


def _weight(name: str, experts: Sequence[Sequence[StoredTensor]]) -> StoredTensor:
    stacked = stack(name, experts)
    count, rows, width = stacked.shape
    assert stacked.matrices is not None
    matrices = stacked.matrices
    if len(experts[0]) > 1:
        matrices = reordered(matrices, lambda read: taking_turns(read, rows))

    def read(start: int, stop: int) -> Array:
        return matrices.rows(start * rows, stop * rows).reshape(stop - start, rows, width).swapaxes(1, 2)

    return replace(stacked, shape=(count, width, rows), reader=read, matrices=matrices)


def _bias(path: Path, name: str, experts: Sequence[Sequence[StoredTensor]]) -> StoredTensor:
    members = [tensor for row in experts for tensor in row]
    first = members[0]
    if {(tensor.shape, tensor.dtype) for tensor in members} != {(first.shape, first.dtype)}:
        raise InputError(f"{path}: the biases of {name} differ in shape or type; convert the model again.")
    width = len(experts[0]) * first.shape[0]

    def read(start: int, stop: int) -> Array:
        rows = [np.stack([tensor.read() for tensor in row], -1).reshape(-1) for row in experts[start:stop]]
        return np.stack(rows) if rows else np.empty((0, width), first.dtype)

    parts = tuple(members)
    return replace(first, name=name, shape=(len(experts), width), reader=read, verbatim=False, parts=parts)
