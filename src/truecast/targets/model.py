"""What a target is: the contract of a runtime, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from truecast.artifact import GraphInfo
from truecast.states import NAMES


class Padding(StrEnum):
    """Which attention masks a graph is right for."""

    ANY = "any"
    """Every mask of zeros and ones; positions are an input."""
    RIGHT = "right"
    """Masks with the ones first in every row; a token's place in the row is its position."""


class SideFileWriter(Protocol):
    """Writes what a runtime needs beside the graph.

    `folder` holds the graph, config.json and the tokenizer files already; `config` is the content of config.json.
    """

    def __call__(self, folder: Path, config: Mapping[str, Any], graph: GraphInfo) -> None:
        """Writes the files into `folder`."""


@dataclass(frozen=True)
class Target:
    """A runtime's contract.

    `dialect` names the operators the graph may use; `position_ids` says whether they are an input. With
    `single_logits` the output `logits` is declared [batch, 1, vocab] and is taken, by default, at the last position
    whose mask is 1 in every row; without, the middle dimension has a name and the last position is taken. `opsets` are
    those a user may choose from; without any the dialect's own is used. `states` are the parts of states (see
    `truecast.states`) that its runtime carries from step to step.
    """

    name: str
    description: str
    dialect: str
    padding: Padding
    position_ids: bool
    single_logits: bool
    write_side_files: SideFileWriter
    opsets: tuple[int, ...] = ()
    states: frozenset[str] = frozenset(NAMES)
