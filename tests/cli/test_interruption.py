"""Ctrl-C and SIGTERM at any moment of an export: OUT as it was, nothing beside it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import pytest

from tests.cli.test_bad_input import EXPORT, state
from truecast.cli.ending import _is_tracing

PATIENCE = 120
"""Seconds to wait for a process on a busy machine."""

SIGNAL_AT = """
import os, signal, sys
import {module}
original = {module}.{function}
def interrupted(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGINT)
    return original(*args, **kwargs)
{module}.{function} = interrupted
"""
"""Sends the process itself the signal of Ctrl-C when a function of the export is called."""


LOST_AT = """
import os, sys
import {module}
original = {module}.{function}
class Destroyed:
    def __del__(self):
        os.kill(os.getpid(), {number})
        sum(range(10))
def interrupted(*args, **kwargs):
    Destroyed()
    return original(*args, **kwargs)
{module}.{function} = interrupted
"""
"""Sends the signal within a destructor, out of which no exception comes."""

ENDINGS = pytest.mark.parametrize(
    ("number", "status", "sentence"),
    [(signal.SIGINT, 130, "Interrupted; nothing was written.\n"), (signal.SIGTERM, 143, "")],
    ids=["Ctrl-C", "SIGTERM"],
)


@pytest.mark.parametrize("function", ["load_config", "trace_decoder", "write_weights", "attach", "write_manifest"])
def test_ctrl_c_inside_an_export_leaves_out_untouched(
    function: str, pristine: Path, artifact: Path, tmp_path: Path
) -> None:
    before = state(tmp_path)
    module = "truecast.publishing.publish" if function == "write_manifest" else "truecast.exporting"
    code = SIGNAL_AT.format(module=module, function=function) + EXPORT
    command = [sys.executable, "-c", code, str(pristine), str(artifact), "--force", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted; nothing was written.\n")
    assert state(tmp_path) == before


@ENDINGS
def test_a_signal_within_a_destructor_is_heard(
    number: signal.Signals, status: int, sentence: str, pristine: Path, artifact: Path, tmp_path: Path
) -> None:
    before = state(tmp_path)
    code = LOST_AT.format(module="truecast.exporting", function="load_config", number=int(number)) + EXPORT
    command = [sys.executable, "-c", code, str(pristine), str(artifact), "--force", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", sentence)
    assert state(tmp_path) == before


@ENDINGS
def test_a_signal_from_outside_leaves_nothing(
    number: signal.Signals, status: int, sentence: str, pristine: Path, tmp_path: Path
) -> None:
    code = "import sys; from truecast.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "export", str(pristine), str(tmp_path / "out"), "--no-verify", "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while not list(tmp_path.glob(".out.partial-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (status, "", sentence)
    assert state(tmp_path) == {}


@pytest.mark.parametrize(("module", "tracing"), [("torch.fx.proxy", True), ("torch.nn.modules.linear", False)])
def test_no_exception_comes_out_of_nowhere_while_torch_traces(module: str, tracing: bool) -> None:
    def called(inner: Callable[[], bool]) -> bool:
        return inner()

    within = FunctionType(called.__code__, {"__name__": module})
    assert within(lambda: _is_tracing(sys._getframe())) is tracing
