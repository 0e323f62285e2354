"""Runs every case, optional ones included, and writes the table into the manual: `python -m tests.conformance.report`.

With names of cases as arguments it runs only those and prints their rows.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.conformance.cases import BY_NAME, CASES
from tests.conformance.outcome import PRECISIONS, Outcome, attempt, table
from tests.tiny import Case

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"

INTRODUCTION = """# Conformance

Written by `python -m tests.conformance.report`; do not edit.

Each row is a tiny checkpoint with random weights, made from transformers' own classes, exported and proven on the full
grid of shapes, masks and cache lengths. *Lowered* leaves became operators of the runtime, *traced* ones stayed in
standard ONNX operators: as right, and slower. A type without a row may well work: export proves it, or refuses.
"""


def run(cases: Sequence[Case]) -> list[Outcome]:
    """Exports and proves the cases in every precision, with one line of progress for each."""
    outcomes = []
    for case in cases:
        for precision in PRECISIONS:
            with tempfile.TemporaryDirectory() as folder:
                outcome = attempt(case, precision, Path(folder))
            outcomes.append(outcome)
            print(f"{case.name:32} {precision} {outcome.seconds:6.1f} s  {outcome.verdict}", flush=True)
    return outcomes


def page(outcomes: Sequence[Outcome]) -> str:
    """The manual's page."""
    promised, beyond = (table(it for it in outcomes if it.case.optional is optional) for optional in (False, True))
    return (
        f"{INTRODUCTION}\n## Promised\n\n{promised}\n\n## Beyond the promise\n\nTried, and not promised.\n\n{beyond}\n"
    )


def main(names: Sequence[str]) -> None:
    """Runs the named cases, or all of them and writes the page."""
    outcomes = run([BY_NAME[name] for name in names] or CASES)
    if names:
        print(table(outcomes))
    else:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
