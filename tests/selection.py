"""How much of a matrix a run of the tests takes: one case of each mechanism, or with TRUECAST_TESTS=all every case.

`make test` takes the first and `make nightly` the second; what either runs of a case is the same.
"""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from typing import Protocol, TypeVar

EVERYTHING = os.environ.get("TRUECAST_TESTS") == "all"


class Named(Protocol):
    """Whatever has a name."""

    @property
    def name(self) -> str:
        """What it is called."""


Item = TypeVar("Item", bound=Named)


def chosen(cases: Sequence[Item], representatives: Container[str]) -> list[Item]:
    """The cases that this run takes."""
    return [case for case in cases if EVERYTHING or case.name in representatives]
