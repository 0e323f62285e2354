"""Rules about a run whose hazard cannot be made on every machine, on observations that are written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hazards.building import linear, save
from truecast.diagnosis.diagnosing import gather
from truecast.diagnosis.evidence import Evidence
from truecast.diagnosis.model import Seen
from truecast.diagnosis.observing import Observed, Timing
from truecast.diagnosis.rules import session

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
