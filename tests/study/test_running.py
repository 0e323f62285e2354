"""A study runs every variant, keeps going past those that fail, and goes on where it was interrupted.

The workers are stand-ins that measure nothing; what workers measure is tested by itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tests.study.building import PLAN, STAND_IN, folder_with_plan, plan_of
from tests.study.test_process import eventually, started
from truecast.errors import InputError
from truecast.study.local import Event
from truecast.study.plan import read_plan
from truecast.study.results import Report, Row
from truecast.study.running import AGAIN, StudyInterruptedError, run_study

ALL = ["torch fp32", "torch bf16", "onnx fp32", "onnx int8"]
SHORT = 'baselines = ["bf16"]\n' + PLAN


def study(folder: Path, plan: str = SHORT, jobs: int = 1, **behaviour: str) -> Report:
    """Runs the plan; behaviours by "VARIANT STEP" with underscores for blanks."""
    told = {name.replace("_", " "): words for name, words in behaviour.items()}
    (folder / "behaviour.json").write_text(json.dumps(told))
    return run_study(plan_of(folder, plan), folder / "out", jobs, command=STAND_IN)


def calls(folder: Path) -> list[str]:
    """What was started since the last look, in order."""
    file = folder / "calls.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [line.rpartition(" ")[0] for line in lines]


def test_every_variant_has_a_row_and_float32_comes_first_and_last(tmp_path: Path) -> None:
    report = study(tmp_path)
    assert [row.variant.name for row in report.rows] == ALL
    assert all(row.measured for row in report.rows)
    assert calls(tmp_path) == [
        "torch fp32 measure",
        "onnx fp32 prepare",
        "onnx int8 prepare",
        "torch bf16 measure",
        "onnx fp32 measure",
        "onnx int8 measure",
        f"{AGAIN} measure",
    ]
    assert report.drift == 1.0
    assert report.rows[3].proof == "proven: 3 of 3 checks"
    assert report.verdict.use_onnx
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("study.json", "rows", "variants", "reference.npz"),
        *("report.json", "report.md", "report.html"),
    }
    assert Report.model_validate_json((tmp_path / "out" / "report.json").read_text()) == report


def test_a_crash_a_hang_and_too_much_memory_become_rows(tmp_path: Path) -> None:
    plan = SHORT.replace('"int8"]', '"int8", "int4"]').replace("warmup = 0", 'seconds = 2\nmemory = "200 MB"')
    told = {"onnx_fp32_prepare": "crash", "onnx_int8_measure": "hang", "onnx_int4_measure": "grow"}
    report = study(tmp_path, plan, **told)
    reasons = {row.variant.name: row.reason for row in report.rows if not row.measured}
    assert list(reasons) == ["onnx fp32", "onnx int8", "onnx int4"]
    assert "was ended by SIGABRT while being exported: last words" in reasons["onnx fp32"]
    assert "took more than 2 s while being measured" in reasons["onnx int8"]
    assert "more than the limit of 0.20 GB" in reasons["onnx int4"]
    assert report.rows[1].measured
    assert not report.verdict.use_onnx
    assert "none of the 3 variants worked" in report.verdict.sentence
    assert all(reason.rstrip(".") in (tmp_path / "out" / "report.md").read_text() for reason in reasons.values())


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = study(tmp_path, onnx_int8_measure="crash")
    calls(tmp_path)
    assert study(tmp_path) == first  # the crash is a result, too
    assert calls(tmp_path) == []


def test_measuring_again_keeps_the_exports(tmp_path: Path) -> None:
    study(tmp_path)
    calls(tmp_path)
    run_study(plan_of(tmp_path, SHORT), tmp_path / "out", again=True, command=STAND_IN)
    assert calls(tmp_path) == [f"{name} measure" for name in (*ALL, AGAIN)]


def test_only_what_changed_is_done_again(tmp_path: Path) -> None:
    study(tmp_path)
    calls(tmp_path)
    study(tmp_path, SHORT.replace('"int8"]', '"int8", "int4"]'))
    assert calls(tmp_path) == ["onnx int4 prepare", "onnx int4 measure", f"{AGAIN} measure"]
    study(tmp_path, SHORT.replace("repeats = 3", "repeats = 4"))
    assert len(calls(tmp_path)) == 7
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    study(tmp_path, SHORT.replace("repeats = 3", "repeats = 4"))
    assert len(calls(tmp_path)) == 7


def test_a_torn_row_is_measured_again_and_its_export_is_kept(tmp_path: Path) -> None:
    whole = study(tmp_path)
    calls(tmp_path)
    torn = tmp_path / "out" / "rows" / "onnx-fp32.json"
    torn.write_text(torn.read_text()[:100])
    again = study(tmp_path)
    assert calls(tmp_path) == ["onnx fp32 measure", f"{AGAIN} measure"]
    assert [row.variant for row in again.rows] == [row.variant for row in whole.rows]


def test_an_interrupted_study_goes_on(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a variant: finished rows stay, the running worker ends, the rest follows later."""
    plan = folder_with_plan(tmp_path, SHORT)
    (tmp_path / "behaviour.json").write_text('{"onnx fp32 measure": "hang"}')
    script = (
        "import sys; from pathlib import Path; from truecast.study import read_plan, run_study; "
        "from truecast.study.running import StudyInterruptedError as Stop\n"
        f"try: run_study(read_plan(Path({str(plan)!r})), {str(tmp_path / 'out')!r}, command={STAND_IN!r})\n"
        "except Stop as error: print(error); sys.exit(error.exit_status)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    file = tmp_path / "calls.txt"
    assert eventually(lambda: file.exists() and "onnx fp32 measure" in file.read_text())
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == StudyInterruptedError.exit_status
    assert out == "Interrupted; 2 of 4 variants are done, and the same command goes on from there.\n"
    assert not any(psutil.pid_exists(pid) for pid in started(tmp_path))
    calls(tmp_path)
    report = study(tmp_path)
    assert calls(tmp_path) == ["onnx fp32 measure", "onnx int8 measure", f"{AGAIN} measure"]
    assert all(row.measured for row in report.rows)


def test_a_killed_study_goes_on(tmp_path: Path) -> None:
    plan = folder_with_plan(tmp_path, SHORT)
    (tmp_path / "behaviour.json").write_text('{"onnx int8 measure": "hang"}')
    script = (
        "from pathlib import Path; from truecast.study import read_plan, run_study; "
        f"run_study(read_plan(Path({str(plan)!r})), {str(tmp_path / 'out')!r}, command={STAND_IN!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    file = tmp_path / "calls.txt"
    assert eventually(lambda: file.exists() and "onnx int8 measure" in file.read_text())
    hanging = started(tmp_path)[-1]
    process.kill()
    process.wait()
    os.kill(hanging, signal.SIGKILL)  # a stand-in does not end with its parent, as a worker does
    calls(tmp_path)
    assert all(row.measured for row in study(tmp_path).rows)
    assert calls(tmp_path) == ["onnx int8 measure", f"{AGAIN} measure"]


def test_jobs_export_together_and_measure_alone(tmp_path: Path) -> None:
    """Both exports wait for a file that appears only once both have started."""
    behaviour = dict.fromkeys(("onnx_fp32_prepare", "onnx_int8_prepare"), "wait both")
    opened = threading.Event()

    def open_when_both_wait() -> None:
        file = tmp_path / "calls.txt"
        if eventually(lambda: file.exists() and file.read_text().count("prepare") == 2):
            opened.set()
        (tmp_path / "both").touch()

    watching = threading.Thread(target=open_when_both_wait)
    watching.start()
    assert all(row.measured for row in study(tmp_path, jobs=2, **behaviour).rows)
    watching.join()
    assert opened.is_set()


def test_changes_are_told(tmp_path: Path) -> None:
    seen: list[tuple[str, Event, bool]] = []

    def watch(name: str, event: Event, row: Row | None) -> None:
        seen.append((name, event, row is not None))

    run_study(plan_of(tmp_path, SHORT), tmp_path / "out", watch=watch, command=STAND_IN)
    assert [event for name, event, _ in seen if name == "onnx int8"] == ["waiting", "exporting", "measuring", "done"]
    seen.clear()
    run_study(plan_of(tmp_path, SHORT), tmp_path / "out", watch=watch, command=STAND_IN)
    assert {(event, there) for _, event, there in seen} == {("kept", True)}


def test_without_float32_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be studied: in PyTorch, its process was ended by SIGABRT"):
        study(tmp_path, torch_fp32_measure="crash")
    with pytest.raises(InputError, match="cannot be studied: in PyTorch, there is no such output"):
        study(tmp_path, torch_fp32_measure="blame")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is no folder of a study"):
        study(tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    (tmp_path / "out" / "study.json").write_text('{"trials": 12}')  # somebody else's study
    with pytest.raises(InputError, match="is no folder of a study"):
        study(tmp_path)
    (tmp_path / "out" / "thesis.txt").unlink()
    (tmp_path / "out" / "study.json").unlink()
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="is a file, not a folder"):
        study(tmp_path)


@pytest.mark.parametrize("name", ["model", "rows.jsonl", "model.onnx", "text.txt", "build.py"])
def test_what_a_study_reads_may_not_lie_in_its_own_folder(name: str, tmp_path: Path) -> None:
    for file in ("model.onnx", "text.txt", "build.py"):
        (tmp_path / file).write_text("")
    more = '\n[[variants]]\nfile = "model.onnx"\n[[variants]]\nprecision = "int4"\ncalibration = "text.txt"\n'
    plan = plan_of(tmp_path, SHORT.replace("[model]", '[model]\nmodule = "build.py:build"') + more)
    (tmp_path / "out").mkdir()
    (tmp_path / name).rename(tmp_path / "out" / name)
    (tmp_path / name).symlink_to(tmp_path / "out" / name)
    with pytest.raises(InputError, match=f"{name} lies in .*out, the study's own folder"):
        run_study(plan, tmp_path / "out", command=STAND_IN)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_reports_name_files_from_where_the_study_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study(tmp_path)
    assert "- Model: model; rows: rows.jsonl, 4 of them." in (tmp_path / "out" / "report.md").read_text()
    assert str(tmp_path) not in (tmp_path / "out" / "report.json").read_text()


def test_jobs_are_counted_from_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--jobs is 0"):
        study(tmp_path, jobs=0)
    assert read_plan(tmp_path / "plan.toml").baselines == ("bf16",)
