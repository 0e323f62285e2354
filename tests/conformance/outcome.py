"""What became of one case in one precision, and the table of all of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import truecast
from tests.tiny import Case, tiny_checkpoint
from truecast.artifact import Check, Manifest, Status, read_manifest
from truecast.errors import InputError, ProofError

PRECISIONS = ("fp32", "int4")
MODULE_PRECISIONS = ("fp32", "int8")
"""Of what has no cache."""
LONGEST_REASON = 90


@dataclass(frozen=True)
class Outcome:
    """One export. `verdict` is `proven` or says what happened; `error` is what was raised, if anything."""

    case: Case
    model_type: str
    precision: str
    verdict: str
    seconds: float
    lowered: Mapping[str, int] = field(default_factory=dict)
    traced: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    error: Exception | None = None

    @property
    def proven(self) -> bool:
        """Whether the certificate says so."""
        return self.verdict == Status.PROVEN


def attempt(case: Case, precision: str, folder: Path) -> Outcome:
    """Makes the case's checkpoint in `folder`/source and exports it, proof included, to `folder`/out."""
    source, out = tiny_checkpoint(case, folder / "source"), folder / "out"
    start = time.perf_counter()
    error: Exception | None = None
    try:
        truecast.export(source, out, precision=precision)
    except Exception as raised:  # a row of the table; the test raises it again
        error = raised
    seconds = time.perf_counter() - start
    manifest = _manifest(out)
    return Outcome(
        case=case,
        model_type=case.config().model_type,
        precision=precision,
        verdict=_verdict(manifest, error, folder),
        seconds=seconds,
        lowered=manifest.graph.lowered if manifest else {},
        traced=manifest.graph.traced if manifest else {},
        checks=tuple(manifest.certificate.checks) if manifest else (),
        error=error,
    )


def _manifest(out: Path) -> Manifest | None:
    """The manifest of what was published or rejected."""
    for folder in (out, out.with_name(f"{out.name}.rejected")):
        if folder.is_dir():
            return read_manifest(folder)
    return None


def _verdict(manifest: Manifest | None, error: Exception | None, folder: Path) -> str:
    if error is None:
        return str(manifest.certificate.status) if manifest else "nothing was written"
    if manifest and isinstance(error, ProofError):
        return "failed: " + _short("; ".join(check.name for check in manifest.certificate.checks if not check.passed))
    kind = "refused" if isinstance(error, InputError) else f"crashed: {type(error).__name__}"
    return f"{kind}: {_short(str(error).replace(f'{folder}/', ''))}"


def _short(text: str) -> str:
    line = " ".join(text.split()).replace("|", "/")
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 1] + "…"


def table(outcomes: Iterable[Outcome], precisions: Sequence[str] = PRECISIONS) -> str:
    """One Markdown row for each case, with its verdict in each precision and what became of the model's leaves."""
    by_case: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        by_case.setdefault(outcome.case.name, {})[outcome.precision] = outcome
    head = ["case", "type", *(f"proven {precision}" for precision in precisions), "lowered leaves", "traced leaves"]
    rows = [head, ["---"] * len(head), *(_row(results, precisions) for results in by_case.values())]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(results: Mapping[str, Outcome], precisions: Sequence[str]) -> list[str]:
    first = next(iter(results.values()))
    verdicts = [results[precision].verdict if precision in results else "not run" for precision in precisions]
    return [
        first.case.name,
        first.model_type,
        *("yes" if verdict == Status.PROVEN else verdict for verdict in verdicts),
        ", ".join(f"{count} {leaf}" for leaf, count in sorted(first.lowered.items())),
        ", ".join(sorted(first.traced)),
    ]
