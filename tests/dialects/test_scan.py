"""Selective scans are known by their arguments, held to the formula, and the operator computes it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.bamba import modeling_bamba
from transformers.models.falcon_mamba import modeling_falcon_mamba
from transformers.models.jamba import modeling_jamba
from transformers.models.mamba import modeling_mamba
from transformers.models.mamba2 import modeling_mamba2

from tests.dialects.running import run_operator
from truecast.dialects.scan import FORMS, form_of, recognise, recurrence

CHANNELS, HEADS = FORMS
SCANS: dict[str, tuple[Callable[..., Any], Any]] = {
    "mamba": (modeling_mamba.mamba_selective_scan, CHANNELS),
    "falcon_mamba": (modeling_falcon_mamba.mamba_selective_scan, CHANNELS),
    "jamba": (modeling_jamba.mamba_selective_scan, CHANNELS),
    "mamba2": (modeling_mamba2.mamba2_chunk_scan, HEADS),
    "bamba": (modeling_bamba.mamba2_chunk_scan, HEADS),
}


@pytest.mark.parametrize("name", SCANS)
def test_an_authors_scan_is_known_and_agrees_with_the_formula(name: str) -> None:
    function, form = SCANS[name]
    assert form_of(function) is form
    assert recognise(function, form)


def test_other_functions_are_no_scans() -> None:
    assert form_of(modeling_mamba.mamba_selective_state_update) is None
    assert form_of(modeling_mamba.causal_conv1d_fn) is None
    assert form_of(torch.exp) is None


@pytest.mark.parametrize(
    ("argument", "changed"),
    [
        ("A", lambda value: value * 1.01),
        ("dt", lambda value: value + 0.01),
        ("B", lambda value: value.flip(1)),
        ("C", lambda value: value * 1.001),
        ("D", lambda value: None),
        ("hidden_states", lambda value: value * 1.001),
    ],
)
@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_a_scan_of_another_formula_is_not_taken(name: str, argument: str, changed: Callable[[Tensor], Any]) -> None:
    function, form = SCANS[name]

    @functools.wraps(function)
    def other(**given: Any) -> Any:
        return function(**given | {argument: changed(given[argument])})

    assert not recognise(other, form)


@pytest.mark.parametrize(
    ("heads", "width", "state", "decay"),
    [(1, 6, 3, (1, 6, 3)), (4, 5, 3, (4, 1, 1))],
    ids=["a decay for each channel and state", "one for each head"],
)
@pytest.mark.parametrize("positions", [1, 7])
def test_the_operator_computes_the_formula(
    heads: int, width: int, state: int, decay: tuple[int, ...], positions: int
) -> None:
    torch.manual_seed(0)
    batch = 2
    inputs = [
        torch.rand(batch, positions, *decay),
        torch.randn(batch, positions, heads, width),
        torch.randn(batch, positions, heads, state),
        torch.randn(batch, positions, heads, state),
        torch.randn(batch, heads, width, state),
    ]
    got = run_operator("truecast::SelectiveScan", inputs, {}, [torch.float32] * 2)
    for one, wanted in zip(got, recurrence(*inputs), strict=True):
        torch.testing.assert_close(one, wanted)
