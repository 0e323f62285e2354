"""Rules about a run whose hazard cannot be made on every machine, on observations that are written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from tests.hazards.building import WIDTH, linear, save, tensor
from tests.hazards.quantization import saturating
from truecast.diagnosis.diagnosing import gather
from truecast.diagnosis.evidence import Evidence
from truecast.diagnosis.host import Host, this_host
from truecast.diagnosis.model import Seen, Severity
from truecast.diagnosis.observing import Observed, Subject, Timing, observe
from truecast.diagnosis.rules import quantization, session

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
COPIES = tuple(Timing(f"Memcpy_{index}", "MemcpyToHost", CUDA, 0.5) for index in range(9))


@pytest.mark.parametrize(
    ("look", "bad", "good"),
    [
        (session.provider_idle, Observed(assigned={CPU: 9}), Observed(assigned={CPU: 9, CUDA: 1})),
        (session.copies_ran, Observed(timings=COPIES), Observed(timings=COPIES[:8])),
        (session.optimizer_differs, Observed(difference=0.02), Observed(difference=0.001)),
    ],
)
def test_is_seen_and_its_twin_is_not(
    look: Callable[[Evidence], Seen | None], bad: Observed, good: Observed, tmp_path: Path
) -> None:
    evidence = gather(save(linear(), tmp_path), "cuda")
    assert look(replace(evidence, observed=bad)) is not None
    assert look(replace(evidence, observed=good)) is None
    assert look(evidence) is None


def test_copies_carry_their_time(tmp_path: Path) -> None:
    evidence = replace(gather(save(linear(), tmp_path), "cuda"), observed=Observed(timings=COPIES))
    found = session.copies_ran(evidence)
    assert found is not None
    assert (found.count, found.milliseconds) == (9, 4.5)


@pytest.mark.parametrize(("moved", "severity"), [(None, None), (0.1, None), (0.0, Severity.INFO)])
def test_saturation_that_changed_no_output_is_for_information(
    moved: float | None, severity: Severity | None, tmp_path: Path
) -> None:
    evidence = replace(
        gather(saturating(tmp_path, True)), host=Host(saturates=True), observed=Observed(saturation=moved)
    )
    found = quantization.saturates(evidence)
    assert found is not None
    assert found.severity == severity
    assert ("with exact products outputs differ by" in found.detail) == (moved is not None)


def test_saturation_is_measured_in_a_run(tmp_path: Path) -> None:
    observed = observe(Subject(saturating(tmp_path, True), "cpu", {}, {}))
    assert observed.saturation is not None
    assert (observed.saturation > 0) == this_host().saturates


def test_whole_numbers_that_change_are_saturation_too(tmp_path: Path) -> None:
    made = onnx.load(saturating(tmp_path, True))
    del made.graph.node[2:]
    made.graph.output[0].CopyFrom(tensor("i", ["batch", WIDTH], onnx.TensorProto.INT32))
    observed = observe(Subject(save(made, tmp_path), "cpu", {}, {}))
    assert observed.saturation == float(this_host().saturates)
