"""Every hazard is found by its code and nothing else is said; its twin without the problem is silent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.hazards import attention, dtypes, kernels, quantization, session, shapes, weights
from tests.hazards.building import Hazard, loads
from truecast.diagnosis import RULES, Diagnosis, diagnose, diagnosing
from truecast.diagnosis.host import Host

FAMILIES = (kernels, quantization, shapes, dtypes, weights, attention, session)
HAZARDS: tuple[Hazard, ...] = tuple(hazard for family in FAMILIES for hazard in family.HAZARDS)
ELSEWHERE = {
    "TC507": "a file of 1.5 GB is not made in a test; see test_large.py",
    "TC707": "needs a provider that is installed and takes nothing",
    "TC708": "needs a CUDA device",
    "TC710": "needs an optimizer that errs",
    "TC711": "needs a process of its own; see tests/diagnosis/test_apart.py",
}
"""Codes without a model here, and why; each has a test of its own on made-up observations."""


def diagnosed(hazard: Hazard, folder: Path, present: bool, monkeypatch: pytest.MonkeyPatch) -> Diagnosis:
    monkeypatch.setattr(diagnosing, "this_host", lambda: Host(saturates=hazard.saturating))
    return diagnose(hazard.make(folder, present), hazard.provider, hazard.run, hazard.session, seconds=None)


@pytest.mark.parametrize("hazard", HAZARDS, ids=str)
def test_a_hazard_is_found_and_nothing_else(hazard: Hazard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnosed(hazard, tmp_path, True, monkeypatch)
    assert hazard.code in found.codes
    assert set(found.codes) <= {hazard.code, *hazard.besides}


@pytest.mark.parametrize("hazard", HAZARDS, ids=str)
def test_its_clean_twin_is_silent(hazard: Hazard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert diagnosed(hazard, tmp_path, False, monkeypatch).findings == ()


REFUSED = {f"TC{number}" for number in (101, 102, 103, 105, 106, 205, 402, 404, 405, 407, 504, 505, 706)}
"""Codes that say that ONNX Runtime does not load the model."""


@pytest.mark.parametrize("hazard", [hazard for hazard in HAZARDS if hazard.code in REFUSED], ids=str)
def test_the_runtime_agrees_that_it_does_not_load(hazard: Hazard, tmp_path: Path) -> None:
    for present in (True, False):
        folder = tmp_path / str(present)
        folder.mkdir()
        assert loads(hazard.make(folder, present)) is not present


def test_the_runtimes_experts_in_float16_are_zero(tmp_path: Path) -> None:
    """Fails where a newer ONNX Runtime has a kernel that does not need TC112 any more."""
    sizes = []
    for present in (True, False):
        folder = tmp_path / str(present)
        folder.mkdir()
        session = ort.InferenceSession(str(kernels.zero_experts(folder, present)), providers=["CPUExecutionProvider"])
        x = np.ones((3, 64), np.float16 if present else np.float32)
        sizes.append(float(np.abs(session.run(None, {"x": x, "scores": x[:, :4]})[0]).max()))
    assert sizes[0] == 0 < sizes[1]


def test_every_rule_has_a_hazard() -> None:
    assert {hazard.code for hazard in HAZARDS} | set(ELSEWHERE) == {rule.code for rule in RULES}
