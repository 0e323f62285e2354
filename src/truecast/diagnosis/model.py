"""What a diagnosis says: findings with stable codes, and the document that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

SHOWN_NAMES = 5
"""Names that a finding lists; the count says how many there are."""


class Severity(StrEnum):
    """What a finding means for the model's user."""

    ERROR = "error"
    """The model does not load or run there, or gives wrong results."""
    WARNING = "warning"
    """It runs, but much slower, larger or less accurately than it could, or only for some inputs."""
    INFO = "info"
    """Worth knowing; harmless as things are."""


@dataclass(frozen=True)
class Seen:
    """What one rule saw: the evidence of a finding.

    `names` are the nodes, values or files concerned, the first few; `count` is their number. `nbytes` and
    `milliseconds` are what the problem takes, where that is known. `severity`, `cost` and `fix` replace the rule's own
    words where this case differs.
    """

    names: tuple[str, ...]
    count: int
    detail: str = ""
    nbytes: int | None = None
    milliseconds: float | None = None
    severity: Severity | None = None
    cost: str | None = None
    fix: str | None = None


def seen(names: Iterable[str], detail: str = "", **more: Any) -> Seen | None:
    """The evidence over some names; None when there are none, which means that the rule has nothing to say."""
    listed = list(names)
    return Seen(tuple(listed[:SHOWN_NAMES]), len(listed), detail, **more) if listed else None


@dataclass(frozen=True)
class Finding:
    """One problem: its stable code, how bad it is, the evidence, what it costs, and the fix in one sentence.

    `mendable` is the number of changes that `repair` would make for it.
    """

    code: str
    severity: Severity
    title: str
    nodes: tuple[str, ...]
    count: int
    detail: str
    cost: str
    fix: str
    fixable: bool
    mendable: int = 0
    nbytes: int | None = None
    milliseconds: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """The findings about one file on one provider, worst first.

    `facts` say what was looked at, `notes` what was not.
    """

    path: Path
    provider: str
    findings: tuple[Finding, ...]
    facts: Mapping[str, str | int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """1 when there is an error, else 0."""
        return int(any(finding.severity is Severity.ERROR for finding in self.findings))

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of all findings."""
        return tuple(finding.code for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as a JSON document."""
        return {
            "path": str(self.path),
            "provider": self.provider,
            "facts": dict(self.facts),
            "findings": [asdict(finding) for finding in self.findings],
            "notes": list(self.notes),
            "exit_status": self.exit_status,
        }
