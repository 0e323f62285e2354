"""Runs every case, optional ones included, and writes the table into the manual: `python -m tests.conformance.report`.

With names of cases as arguments it runs only those and prints their rows; with `encoders` it makes their table anew and
leaves the others as they are.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

from tests.conformance.cases import BY_NAME
from tests.conformance.encoders import BY_NAME as ENCODERS_BY_NAME
from tests.conformance.outcome import MODULE_PRECISIONS, PRECISIONS, Outcome, attempt, table
from tests.tiny import Case
from tests.traces import traced_once

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"

INTRODUCTION = """# Conformance

Written by `python -m tests.conformance.report`; do not edit.

Each row is a tiny checkpoint with random weights, made from transformers' own classes, exported and proven on the full
grid of shapes, masks and cache lengths. *Lowered* leaves became operators of the runtime, *traced* ones stayed in
standard ONNX operators: as right, and slower. A type without a row may well work: export proves it, or refuses.
"""


KNOWN: dict[str, Case] = {**BY_NAME, **ENCODERS_BY_NAME}
ENCODER_HEADING = "## Encoders"
ENCODER_INTRODUCTION = f"""{ENCODER_HEADING}

Models without a cache, with a task's head or without: text, pictures and sound. Proven on a grid over every free axis,
with padding where they take a mask.
"""


def run(names: Sequence[str], precisions: Sequence[str]) -> list[Outcome]:
    """Exports and proves the named cases in every precision, as many at once as there are processors."""
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as workers:
        for found in workers.map(_outcomes, names, repeat(precisions)):
            outcomes += found
            for one in found:
                print(f"{one.case.name:32} {one.precision} {one.seconds:6.1f} s  {one.verdict}", flush=True)
    return outcomes


def _outcomes(name: str, precisions: Sequence[str]) -> list[Outcome]:
    """One case: the second precision takes the trace of the first. What was raised is told by the verdict."""
    found = []
    with traced_once():
        for precision in precisions:
            with tempfile.TemporaryDirectory() as folder:
                found.append(replace(attempt(KNOWN[name], precision, Path(folder)), error=None))
    return found


def decoder_part(outcomes: Sequence[Outcome]) -> str:
    """The manual's page up to the encoders."""
    promised, beyond = (table(it for it in outcomes if it.case.optional is optional) for optional in (False, True))
    return (
        f"{INTRODUCTION}\n## Promised\n\n{promised}\n\n## Beyond the promise\n\nTried, and not promised.\n\n{beyond}\n"
    )


def encoder_part(outcomes: Sequence[Outcome]) -> str:
    """The rest of the page."""
    return f"{ENCODER_INTRODUCTION}\n{table(outcomes, MODULE_PRECISIONS)}\n"


def main(names: Sequence[str]) -> None:
    """Runs the named cases, or all of them and writes the page."""
    if list(names) == ["encoders"]:
        decoders = PAGE.read_text(encoding="utf-8").partition(ENCODER_HEADING)[0].rstrip() + "\n"
    elif names:
        chosen = [(BY_NAME, PRECISIONS), (ENCODERS_BY_NAME, MODULE_PRECISIONS)]
        for known, precisions in chosen:
            if asked := [name for name in names if name in known]:
                print(table(run(asked, precisions), precisions))
        return
    else:
        decoders = decoder_part(run([*BY_NAME], PRECISIONS))
    encoders = encoder_part(run([*ENCODERS_BY_NAME], MODULE_PRECISIONS))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(f"{decoders}\n{encoders}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
