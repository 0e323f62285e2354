"""A rule: one small pure function over the evidence, with the words of the finding that it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from truecast.diagnosis.evidence import Evidence
from truecast.diagnosis.mending import Change
from truecast.diagnosis.model import Finding, Seen, Severity

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO


@dataclass(frozen=True)
class Rule:
    """One kind of problem.

    `code` never changes its meaning. `title`, `cost` and `fix` are the finding's words; `look` returns the evidence, or
    None where the problem is absent. `mend` returns what `repair` can change of it with the same results.
    """

    code: str
    severity: Severity
    title: str
    cost: str
    fix: str
    look: Callable[[Evidence], Seen | None]
    mend: Callable[[Evidence], tuple[Change, ...]] | None = None

    def finding(self, seen: Seen, evidence: Evidence) -> Finding:
        """The finding for what was seen."""
        mendable = 0 if self.mend is None else len(self.mend(evidence))
        return Finding(
            code=self.code,
            severity=seen.severity or self.severity,
            title=self.title,
            nodes=seen.names,
            count=seen.count,
            detail=seen.detail,
            cost=seen.cost or self.cost,
            fix=seen.fix or self.fix,
            fixable=mendable > 0,
            mendable=mendable,
            nbytes=seen.nbytes,
            milliseconds=seen.milliseconds,
        )


def findings_of(rules: Iterable[Rule], evidence: Evidence) -> Iterator[Finding]:
    """What the rules find."""
    for rule in rules:
        seen = rule.look(evidence)
        if seen is not None:
            yield rule.finding(seen, evidence)
