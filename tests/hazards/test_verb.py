"""The verb `diagnose`: exit status, table, JSON; and what is said about providers without a table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import truecast
from tests.hazards import attention, dtypes, kernels
from tests.hazards.building import linear, save
from truecast.cli import main
from truecast.diagnosis import Severity, diagnose
from truecast.diagnosis.host import integer_products_differ
from truecast.diagnosis.observing import Subject, observe
from truecast.diagnosis.rules import RULES
from truecast.runtime.providers import PRECISE_KEY


def test_an_error_gives_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = kernels.no_kernel(tmp_path, True)
    assert main(["diagnose", str(path)]) == 1
    printed = capsys.readouterr()
    assert "TC106 error" in printed.out
    assert "Where-16 (bool)" in printed.out
    assert printed.err == ""


def test_a_warning_gives_status_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(dtypes.double_leak(tmp_path, True))]) == 0
    assert "TC403 warning" in capsys.readouterr().out


def test_json_is_the_diagnosis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = kernels.no_kernel(tmp_path, True)
    assert main(["diagnose", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(truecast.diagnose(path).to_dict()))


def test_a_clean_model_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(save(linear(), tmp_path)), "--run"]) == 0
    assert "Nothing was found." in capsys.readouterr().out


def test_a_misspelt_key_on_the_command_line_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["diagnose", str(save(linear(), tmp_path)), "--session", "session.disable_prepackin=1"])
    assert "did you mean session.disable_prepacking?" in " ".join(capsys.readouterr().out.split())


def test_a_provider_without_a_table_is_said(tmp_path: Path) -> None:
    assert "no kernel table for coreml" in diagnose(save(linear(), tmp_path), "coreml").notes[0]


def test_running_on_an_absent_provider_is_an_error(tmp_path: Path) -> None:
    (finding,) = diagnose(save(linear(), tmp_path), "cuda", run=True, seconds=None).findings
    assert (finding.code, finding.severity) == ("TC701", Severity.ERROR)


def test_findings_carry_sizes_names_and_milliseconds(tmp_path: Path) -> None:
    (finding,) = diagnose(kernels.falls_back(tmp_path, True), "cuda").findings
    assert finding.nodes == ("Elu Elu_n",)
    assert "1 Elu-22 (float)" in finding.detail
    (finding,) = diagnose(attention.concatenated_cache(tmp_path, True)).findings
    assert finding.count == 1


def test_times_are_of_one_run(tmp_path: Path) -> None:
    observed = observe(Subject(save(linear(), tmp_path), "cpu", {}, {}))
    assert [timing.operator for timing in observed.timings] == ["MatMul"]
    assert [str(trial) for trial in observed.trials[:2]] == ["x [2, 64]", "x [1, 64]"]


def test_no_torch_is_imported(tmp_path: Path) -> None:
    path = save(linear(), tmp_path)
    code = f"import sys, truecast; truecast.diagnose({str(path)!r}, run=True); print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


def test_the_probe_measures_this_processor() -> None:
    """With the precise kernels no processor saturates, so the probe itself computes rightly."""
    assert not integer_products_differ({PRECISE_KEY: "1"})


def test_the_manual_lists_every_code_with_the_words_of_its_rule() -> None:
    page = (Path(__file__).parents[2] / "docs" / "diagnose.md").read_text()
    rows = {f"| {rule.code} | {rule.severity} | {rule.title} | {rule.cost} | {rule.fix} |" for rule in RULES}
    assert {line for line in page.splitlines() if line.startswith("| TC")} == rows
