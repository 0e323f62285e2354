"""The precision of an export: the one asked for, or the recommended one with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from truecast.request import RECOMMENDED


@dataclass(frozen=True)
class Choice:
    """A precision; `reason` is None when it was asked for."""

    precision: str
    reason: str | None

    def __str__(self) -> str:
        return self.precision if self.reason is None else f"{self.precision}, because {self.reason}"


def choose(source: Path | None, precision: str, provider: str) -> Choice:
    """The precision asked for, else what inspection recommends for `provider`; raises InputError as opening does.

    Without a source, that of a module of the user's own is left as it is.
    """
    if precision != RECOMMENDED:
        return Choice(precision, None)
    if source is None:
        return Choice("fp32", "what a module of your own loses by another is not known")
    from truecast.checkpoint import open_checkpoint
    from truecast.inspection import recommend

    advice = recommend(open_checkpoint(source), provider)
    return Choice(advice.precision, advice.reason)
