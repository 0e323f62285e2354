"""The seam of selective scans: in place of the author's functions while it lasts, and only where it may stand."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from transformers.models.mamba import modeling_mamba

from tests.conformance.cases import BY_NAME
from truecast.dialects.scan import FORMS
from truecast.states import State
from truecast.trace.caches import GraphCache, RecordingCache
from truecast.trace.context import LeafMismatch, StepContext
from truecast.trace.scans import ScanSeam, scan_seam

AUTHOR = modeling_mamba.mamba_selective_scan


def model() -> Any:
    return transformers.AutoModelForCausalLM.from_config(BY_NAME["mamba"].config())


def test_the_seam_is_there_while_it_lasts() -> None:
    with scan_seam(model(), ScanSeam(nullcontext)):
        assert modeling_mamba.mamba_selective_scan is not AUTHOR
    assert modeling_mamba.mamba_selective_scan is AUTHOR


def test_a_scan_without_a_state_is_refused() -> None:
    seam = ScanSeam(nullcontext)
    given = FORMS[0].probe(torch.randn)
    with pytest.raises(LeafMismatch, match="asks for no state"):
        seam(AUTHOR, FORMS[0], **given)


def test_a_scan_that_is_told_more_is_refused() -> None:
    seam = ScanSeam(nullcontext)
    given = FORMS[0].probe(torch.randn) | {"cu_seqlens": torch.ones(1)}
    with pytest.raises(LeafMismatch, match="in its own way"):
        seam(AUTHOR, FORMS[0], **given)


def test_a_recording_run_learns_the_states() -> None:
    case, cache = BY_NAME["mamba"], RecordingCache(2, "float32")
    model()(input_ids=torch.zeros(1, 3, dtype=torch.long), cache_params=cache, use_cache=True)
    config: Any = case.config()
    sizes = {
        "conv": (config.intermediate_size, config.conv_kernel),
        "ssm": (config.intermediate_size, config.state_size),
    }
    assert cache.states == {
        layer: tuple(State(layer, part, sizes[part], "float32") for part in ("conv", "ssm")) for layer in (0, 1)
    }


def test_a_cache_of_the_graph_keeps_the_last_inputs_of_a_convolution() -> None:
    states = {0: (State(0, "conv", (3, 4), "float32"),)}
    past, new = torch.zeros(2, 3, 4), torch.ones(2, 3, 5)
    context = StepContext(states, lambda layer: [past], 4, 9)
    cache = GraphCache(context, 1, append_in_operator=False)
    whole = cache.update_conv_state(new[..., :2], 0)
    assert whole.shape == (2, 3, 6)
    assert torch.equal(context.present["present_conv.0"], torch.tensor([0.0, 0, 1, 1]).expand(2, 3, 4))
