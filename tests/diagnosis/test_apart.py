"""Runs in a process of their own: ended when they take too long, and what was known until then is kept."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.hazards.building import constant, layer, linear, model, node, rows, save, tensor, weight
from truecast.cli import main
from truecast.diagnosis import Severity, diagnose, repair
from truecast.diagnosis.apart import Ended, call_apart
from truecast.errors import ProofError


def endless(folder: Path) -> Path:
    """A Loop whose condition stays true."""
    nodes = [node("Identity", ["again"], ["still"]), node("Relu", ["v"], ["next"])]
    ends = [tensor("i", [], TensorProto.INT64), tensor("again", [], TensorProto.BOOL), rows("v")]
    body = helper.make_graph(nodes, "body", ends, [tensor("still", [], TensorProto.BOOL), rows("next")])
    loop = node("Loop", ["", "true", "x"], ["h"], body=body)
    weights = [constant("true", True, np.bool_), weight("w", 64, 64), weight("w", 64, 64)]
    weights[2].name = "copy"
    return save(model([loop, layer("h", "m"), layer("m", "y", "copy")], [rows()], [rows("y")], weights), folder)


def tells_then(end: str, tell: Any) -> None:
    tell("first", 1)
    tell("second", 2)
    os.kill(os.getpid(), signal.SIGKILL) if end == "crash" else time.sleep(60)


def test_an_endless_loop_is_ended_and_said(tmp_path: Path) -> None:
    started = time.monotonic()
    found = diagnose(endless(tmp_path), run=True, seconds=1)
    assert time.monotonic() - started < 30
    assert found.codes == ("TC501", "TC711", "TC309")
    assert "a run at x [2, 64] took more than 1 s" in found.findings[1].detail
    assert "took more than 1 s and was ended; what was not run behind it is not known" in found.notes[0]


def test_a_mend_that_cannot_be_checked_in_time_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ProofError, match="took more than 1 s"):
        repair(endless(tmp_path), seconds=1)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("end", "crashed", "reason"), [("sleep", False, "took more than 1 s"), ("crash", True, "SIGKILL")]
)
def test_what_was_told_is_kept(end: str, crashed: bool, reason: str) -> None:
    steps: list[str] = []
    ended = call_apart(tells_then, (end,), 1, steps.append)
    assert isinstance(ended, Ended)
    assert (ended.step, ended.known, ended.crashed, steps) == ("second", 2, crashed, ["first", "second"])
    assert reason in ended.reason


def test_the_answer_is_that_of_this_process(tmp_path: Path) -> None:
    path = save(linear(), tmp_path)
    told: list[str] = []
    apart = diagnose(path, run=True, progress=lambda stage, done, total: told.append(stage))
    here = diagnose(path, run=True, seconds=None)
    assert (apart.findings, apart.notes, apart.facts["ran"]) == (here.findings, here.notes, here.facts["ran"])
    assert told[:2] == ["Running it: loading it", "Running it: a run at x [2, 64]"]


def test_a_process_that_breaks_down_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truecast.diagnosis.diagnosing.observe", dies)
    (found,) = diagnose(save(linear(), tmp_path), run=True, seconds=5).findings
    assert (found.code, found.severity) == ("TC711", Severity.ERROR)


def dies(subject: Any, tell: Any) -> None:
    tells_then("crash", lambda step, known: tell(step, None))


def test_seconds_are_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(endless(tmp_path)), "--run", "--seconds", "1"]) == 0
    assert "TC711 warning" in capsys.readouterr().out
