"""Whether two files give the same outputs, bit for bit, on made-up inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from truecast.diagnosis.feeds import FIRST_TRIES, Sizes, make_feeds, why_not
from truecast.diagnosis.observing import Tell, silent
from truecast.diagnosis.trials import QUIET, first_line
from truecast.runtime.providers import FOLDER_KEY, LOAD_ERRORS, session_options


@dataclass(frozen=True)
class Side:
    """A graph, and the folder of its external data."""

    file: Path
    folder: Path


@dataclass(frozen=True)
class Comparison:
    """What was compared: outputs and runs; the output that differs, or why nothing could be compared."""

    outputs: int = 0
    runs: int = 0
    different: str | None = None
    failure: str | None = None


def compare(before: Side, after: Side, bounds: Mapping[str, int], tell: Tell = silent) -> Comparison:
    """Runs both at sizes that the first takes, and at three rows."""
    try:
        tell("loading both files", None)
        old, new = _open(before), _open(after)
    except LOAD_ERRORS as error:
        return Comparison(failure=first_line(error))
    done, failure = Comparison(), "no inputs can be made up for it"
    for sizes in FIRST_TRIES:
        if why_not(old.get_inputs(), sizes) is not None:
            continue
        tell("a run of both files", None)
        try:
            wanted = _run(old, sizes, bounds)
        except LOAD_ERRORS as error:
            failure = first_line(error)
            continue
        done = _joined(done, wanted, new, old, sizes, bounds)
        return done if done.different else _at_three_rows(done, old, new, sizes, bounds)
    return Comparison(failure=failure)


def _at_three_rows(
    done: Comparison, old: ort.InferenceSession, new: ort.InferenceSession, sizes: Sizes, bounds: Mapping[str, int]
) -> Comparison:
    """A second run; a model that takes no three rows was compared once."""
    try:
        wanted = _run(old, replace(sizes, batch=3), bounds)
    except LOAD_ERRORS:
        return done
    return _joined(done, wanted, new, old, replace(sizes, batch=3), bounds)


def _joined(
    done: Comparison,
    wanted: list[Any],
    new: ort.InferenceSession,
    old: ort.InferenceSession,
    sizes: Sizes,
    bounds: Mapping[str, int],
) -> Comparison:
    names = [value.name for value in old.get_outputs()]
    if names != [value.name for value in new.get_outputs()]:
        return replace(done, different="names of the outputs")
    try:
        got = _run(new, sizes, bounds)
    except LOAD_ERRORS as error:
        return replace(done, failure=first_line(error))
    wrong = next((n for n, left, right in zip(names, wanted, got, strict=True) if not _same(left, right)), None)
    return Comparison(len(names), done.runs + 1, wrong)


def _open(side: Side) -> ort.InferenceSession:
    """The graph is given as bytes, since its data may lie in another folder."""
    options = session_options(entries={})
    options.log_severity_level = QUIET
    options.add_session_config_entry(FOLDER_KEY, str(side.folder.resolve()))
    return ort.InferenceSession(side.file.read_bytes(), options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession, sizes: Sizes, bounds: Mapping[str, int]) -> list[Any]:
    run = ort.RunOptions()
    run.log_severity_level = QUIET
    return list(session.run(None, make_feeds(session.get_inputs(), sizes, bounds), run))


def _same(left: Any, right: Any) -> bool:
    """Equal arrays, NaN as NaN, or lists and maps of such."""
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, dict):
        return bool(left.keys() == right.keys()) and all(_same(left[key], right[key]) for key in left)
    numbers = np.asarray(left).dtype.kind in "fc"
    return bool(np.array_equal(left, right, equal_nan=numbers))
