"""A worker that crashes, hangs or takes too much is ended, and says why in a row; nothing of it stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.study.building import STAND_IN, plan_of
from truecast.study.plan import Plan, Variants
from truecast.study.process import Stopped, ended_by, run_worker
from truecast.study.variants import Variant
from truecast.study.worker import Answer, Job, Step


def job(folder: Path, step: Step = "measure", **limits: float) -> Job:
    plan: Plan = plan_of(folder)
    plan = plan.model_copy(update={"measure": plan.measure.model_copy(update=limits)})
    out = folder / "out"
    return Job(
        step=step,
        plan=plan,
        variant=Variant(name="onnx fp32", kind="onnx"),
        folder=out / "variants" / "onnx-fp32",
        reference=out / "reference.npz",
    )


def behaving(folder: Path, behaviour: str, step: Step = "measure", **limits: float) -> Answer:
    told = job(folder, step, **limits)
    (folder / "behaviour.json").write_text(json.dumps({f"onnx fp32 {step}": behaviour}))
    return run_worker(told, command=STAND_IN)


def started(folder: Path) -> list[int]:
    """The processes that were started for a study."""
    return [int(line.split()[-1]) for line in (folder / "calls.txt").read_text().splitlines()]


def test_an_answer_comes_back(tmp_path: Path) -> None:
    assert behaving(tmp_path, "")["state"] == "measured"
    assert behaving(tmp_path, "", "prepare") == {"proof": "proven: 3 of 3 checks"}


def test_a_crash_becomes_a_reason_with_the_last_words(tmp_path: Path) -> None:
    answer = behaving(tmp_path, "crash")
    assert answer["state"] == "failed"
    assert answer["reason"] == "its process was ended by SIGABRT while being measured: last words"


def test_ending_without_an_answer_is_no_success(tmp_path: Path) -> None:
    assert behaving(tmp_path, "")["state"] == "measured"  # whose answer must not be taken for the next one's
    answer = behaving(tmp_path, "quit")
    assert answer["reason"] == "its process ended with status 3 and no answer while being measured"
    answer = behaving(tmp_path, "nothing")
    assert answer["reason"] == "its process ended with status 0 and no answer while being measured"


def test_the_reason_of_an_error_is_its_first_line(tmp_path: Path) -> None:
    script = tmp_path / "raises.py"
    script.write_text("raise ValueError('the first line\\n  of several\\nsee https://example.org/what-is-this')\n")
    answer = run_worker(job(tmp_path), command=(sys.executable, str(script)))
    assert answer["reason"] == (
        "its process ended with status 1 and no answer while being measured: ValueError: the first line"
    )


def test_a_job_with_files_of_others_reaches_the_worker(tmp_path: Path) -> None:
    told = job(tmp_path)
    block = Variants(file=("a.onnx",))
    told = told.model_copy(update={"plan": told.plan.model_copy(update={"variants": (block,)})})
    assert Job.model_validate_json(told.model_dump_json()) == told


def test_hanging_ends_at_the_limit(tmp_path: Path) -> None:
    start = time.monotonic()
    answer = behaving(tmp_path, "hang", "prepare", seconds=1.0)
    assert time.monotonic() - start < 10
    assert answer["reason"] == "it took more than 1 s while being exported, and was ended"
    assert not psutil.pid_exists(started(tmp_path)[0])


def test_too_much_memory_ends_at_the_limit(tmp_path: Path) -> None:
    answer = behaving(tmp_path, "grow", memory=200 * 10**6, seconds=60)
    assert "GB of memory, more than the limit of 0.20 GB, while being measured, and was ended" in answer["reason"]
    held = float(answer["reason"].split("held ")[1].split()[0])
    assert 0.2 <= held < 1.0


def test_a_study_that_stops_ends_its_workers(tmp_path: Path) -> None:
    def stopped() -> bool:
        return (tmp_path / "calls.txt").exists()

    told = job(tmp_path)
    (tmp_path / "behaviour.json").write_text('{"onnx fp32 measure": "hang"}')
    with pytest.raises(Stopped):
        run_worker(told, stopped, STAND_IN)
    assert not psutil.pid_exists(started(tmp_path)[0])


def test_what_a_worker_started_ends_with_it(tmp_path: Path) -> None:
    script = tmp_path / "starts.py"
    script.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'calls.txt')!r}, 'w').write(f'child {{child.pid}}')\n"
        "time.sleep(600)\n"
    )
    answer = run_worker(job(tmp_path, seconds=2.0), command=(sys.executable, str(script)))
    assert "took more than 2 s" in answer["reason"]
    assert eventually(lambda: ended(started(tmp_path)[0]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a process with its parent")
def test_a_worker_ends_with_a_killed_study(tmp_path: Path) -> None:
    inner = (
        "import os, time; from truecast.study.worker import die_with_parent; die_with_parent(); "
        f"open({str(tmp_path / 'calls.txt')!r}, 'w').write(f'child {{os.getpid()}}'); time.sleep(600)"
    )
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], start_new_session=True)"
    parent = subprocess.Popen([sys.executable, "-c", outer])
    assert eventually(lambda: (tmp_path / "calls.txt").exists() and bool((tmp_path / "calls.txt").read_text()))
    parent.kill()
    parent.wait()
    assert eventually(lambda: ended(started(tmp_path)[0]))


def ended(pid: int) -> bool:
    """Whether a process is gone, or waits only for a parent to take its status."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def eventually(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return true()


def test_signals_have_names() -> None:
    assert ended_by(-signal.SIGSEGV) == "was ended by SIGSEGV"
    assert ended_by(-200) == "was ended by signal 200"
    assert os.name == "posix"
