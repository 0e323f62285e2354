"""Promised cases are exported and proven in every precision, and the claim is checked by a second opinion.

`python -m tests.conformance.report` writes the table of all cases, the optional ones among them, into the manual.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.cases import BY_NAME, REPRESENTATIVE, REQUIRED
from tests.conformance.oracle import compare
from tests.conformance.outcome import PRECISIONS, attempt
from tests.selection import chosen
from tests.tiny import Case, stored_model, tiny_model
from tests.traces import traced_once

LARGEST_ERROR = 3e-4
"""Of a float32 graph's logits, as a share of the largest logit; healthy graphs are at 1e-6."""
LEAST_COSINE = 0.98
"""Of a 4-bit graph's logits with the float32 model's; simulated 4-bit storage of these cases stays above 0.995."""
LEAST_COSINE_OF_EXPERTS = 0.95
"""The same where a router chooses experts: of random ones two scores are often near, and rounding then chooses others.
Seen: 0.958 and more. That nothing else differs is the certificate's: it compares with the same rounded weights."""
LEAST_TIERS = 3
"""Static, tensor parity and generation: a certificate with fewer kinds of checks has left something out."""


@pytest.fixture(scope="module", autouse=True)
def one_trace() -> Iterator[None]:
    """A trace does not depend on how weights are stored, and takes most of a small model's export."""
    with traced_once():
        yield


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", chosen(REQUIRED, REPRESENTATIVE), ids=lambda case: case.name)
def test_export_is_proven(case: Case, precision: str, tmp_path: Path) -> None:
    outcome = attempt(case, precision, tmp_path)
    if outcome.error:
        raise outcome.error
    assert outcome.proven, outcome.verdict
    assert all(check.passed for check in outcome.checks)
    assert len({check.tier for check in outcome.checks}) >= LEAST_TIERS
    agreement = compare(tmp_path / "out", stored_model(tmp_path / "source"))
    assert agreement.cosine > (LEAST_COSINE_OF_EXPERTS if "experts" in outcome.lowered else LEAST_COSINE)
    assert precision != "fp32" or agreement.error < LARGEST_ERROR


@pytest.mark.parametrize(
    "name", ["gemma2", "llama_rope_dynamic", "phi3_longrope", "granite", "olmo", "qwen3_moe", "gpt_oss"]
)
def test_the_second_opinion_notices_every_hazard(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    assert attempt(case, "fp32", tmp_path).proven
    for changes in case.hazards.values():
        assert compare(tmp_path / "out", tiny_model(case, **changes)).error > LARGEST_ERROR
