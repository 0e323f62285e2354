"""Encoders of every kind are exported and proven, and the claim is checked by a second opinion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.conformance.encoder_oracle import compare
from tests.conformance.encoders import BY_NAME, ENCODERS, REPRESENTATIVE
from tests.conformance.outcome import MODULE_PRECISIONS, attempt
from tests.selection import chosen
from tests.tiny import Case, tiny_model
from tests.traces import traced_once

LARGEST_ERROR = 3e-4
"""Of a float32 graph's outputs, as a share of the largest; healthy graphs are at 1e-6."""
LEAST_COSINE = 0.98
LEAST_DIFFERENCE = 0.02
"""Of two rows' outputs, as a share of the largest; two hundred times the proof's tolerance."""
LEAST_TIERS = 2
"""Static and parity."""


@pytest.fixture(scope="module", autouse=True)
def one_trace() -> Iterator[None]:
    """A trace does not depend on how weights are stored, and takes most of a small model's export."""
    with traced_once():
        yield


@pytest.mark.parametrize("precision", MODULE_PRECISIONS)
@pytest.mark.parametrize("case", chosen(ENCODERS, REPRESENTATIVE), ids=lambda case: case.name)
def test_export_is_proven(case: Case, precision: str, tmp_path: Path) -> None:
    outcome = attempt(case, precision, tmp_path)
    if outcome.error:
        raise outcome.error
    assert outcome.proven, outcome.verdict
    assert len({check.tier for check in outcome.checks}) >= LEAST_TIERS
    agreement = compare(tmp_path / "out", case, tmp_path / "source")
    assert agreement.cosine > LEAST_COSINE
    assert precision != "fp32" or agreement.error < LARGEST_ERROR


def test_the_second_opinion_notices_a_wrong_setting(tmp_path: Path) -> None:
    case = BY_NAME["modernbert_sequence"]
    assert attempt(case, "fp32", tmp_path).proven
    for name, value in {"local_attention": 2, "norm_eps": 1e-6, "classifier_pooling": "mean"}.items():
        assert compare(tmp_path / "out", case, tmp_path / "source", **{name: value}).error > LARGEST_ERROR


def test_case_names_are_unique() -> None:
    assert len(BY_NAME) == len(ENCODERS)
    assert set(REPRESENTATIVE) <= set(BY_NAME)


@pytest.mark.parametrize("case", ENCODERS, ids=lambda case: case.name)
@torch.no_grad()
def test_outputs_are_finite_and_follow_the_input(case: Case) -> None:
    model = tiny_model(case)
    config = case.config()
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, Callable[[], torch.Tensor]] = {
        "input_ids": lambda: torch.randint(2, 256, (2, 9), generator=generator),
        "pixel_values": lambda: torch.randn(2, 3, config.image_size, config.image_size, generator=generator),
        "input_values": lambda: torch.randn(
            (2, 64, 16) if hasattr(config, "num_mel_bins") else (2, 4000), generator=generator
        ),
    }
    if not hasattr(config, "image_size"):
        shapes["pixel_values"] = lambda: torch.randn(2, 3, 32, 32, generator=generator)
    outputs = model(**{model.main_input_name: shapes[model.main_input_name]()}, return_dict=True)
    tensors = {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    assert tensors
    for value in tensors.values():
        assert value.isfinite().all()
        assert (value[0] - value[1]).abs().max() > LEAST_DIFFERENCE * value.abs().max()
