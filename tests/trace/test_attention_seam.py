"""The attention seam emits one operator only where it knows keys, values, mask and formula; otherwise it says why."""

from __future__ import annotations

from contextlib import nullcontext
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from truecast.dialects.ort import ORT
from truecast.states import PARTS, State, StateTensor
from truecast.trace.caches import GraphCache
from truecast.trace.context import CausalMask, LeafMismatch, StepContext
from truecast.trace.seams import SEAM, AttentionSeam, attention_seam

HEADS, KV_HEADS, WIDTH, NEW, PAST = 4, 2, 8, 5, 3
QUERY, KEY, VALUE = (torch.randn(1, heads, NEW, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS))
FULL = CausalMask(None)


def eager(softmax: Any = torch.softmax, factor: float = 1.0) -> Any:
    """An author's attention function as transformers' files have it."""

    def eager_attention_forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        scaling: float,
        dropout: float = 0.0,
        softcap: float | None = None,
        position_bias: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        groups = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = factor * softmax(scores + attention_mask, -1)
        return (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2), weights

    return eager_attention_forward


def author(attention: Any = None) -> nn.Module:
    """A module whose file has `attention` as its eager attention function, or none."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return x

    names = {} if attention is None else {"eager_attention_forward": attention}
    kind = type("Attention", (nn.Module,), {"forward": FunctionType(forward.__code__, names)})
    module: nn.Module = kind()
    return module


def seam() -> AttentionSeam:
    """A seam whose cache has handed out KEY and VALUE for layer 0."""
    past = torch.zeros(1, KV_HEADS, PAST, WIDTH)
    last, total = torch.zeros(1, dtype=torch.int32), torch.tensor(PAST + NEW, dtype=torch.int32)
    states = {0: tuple(State(0, part, (KV_HEADS, None, WIDTH), "float32") for part in PARTS)}
    context = StepContext(states, lambda layer: (past, past), PAST, PAST + NEW, last, total)
    seam = AttentionSeam(ORT.attention, nullcontext)  # type: ignore[arg-type]
    seam.cache = GraphCache(context, 1, append_in_operator=True)
    seam.cache.update(KEY, VALUE, 0)
    return seam


def test_a_plain_call_becomes_the_operator_and_leaves_its_present() -> None:
    here = seam()
    output, _ = here.attend(author(eager()), QUERY, KEY, VALUE, FULL)
    assert output.shape == (1, NEW, HEADS, WIDTH)
    assert here.cache is not None
    present = here.cache.context.present
    assert [present[StateTensor(0, part).present].shape[2] for part in PARTS] == [PAST + NEW] * 2


@pytest.mark.parametrize(("key", "value"), [(KEY + 0, VALUE), (KEY, VALUE * 1), (VALUE, KEY)])
def test_keys_or_values_changed_after_the_cache_are_refused(key: Tensor, value: Tensor) -> None:
    with pytest.raises(LeafMismatch, match="keys or values are changed"):
        seam().attend(author(eager()), QUERY, key, value, FULL)


@pytest.mark.parametrize("mask", [None, torch.zeros(1, 1, NEW, PAST + NEW)])
def test_a_mask_that_is_not_the_seams_own_is_refused(mask: Tensor | None) -> None:
    with pytest.raises(LeafMismatch, match="changes the attention mask"):
        seam().attend(author(eager()), QUERY, KEY, VALUE, mask)


@pytest.mark.parametrize(
    "attention",
    [
        eager(softmax=lambda scores, axis: torch.sigmoid(scores)),
        eager(softmax=lambda scores, axis: torch.softmax(scores, 1)),
        eager(softmax=lambda scores, axis: scores.exp() / (1 + scores.exp().sum(axis, keepdim=True))),
        eager(factor=0.99),
        lambda *args, **kwargs: None,
    ],
    ids=["sigmoid", "softmax over heads", "softmax plus one", "scaled", "nothing"],
)
def test_an_author_who_computes_attention_differently_is_noticed(attention: Any) -> None:
    with pytest.raises(LeafMismatch, match="computes attention in its own way"):
        seam().attend(author(attention), QUERY, KEY, VALUE, FULL)


def test_rounding_the_softmax_to_float32_is_no_difference() -> None:
    def rounded(scores: Tensor, axis: int) -> Tensor:
        return torch.softmax(scores, axis, dtype=torch.float32).to(scores.dtype)

    seam().attend(author(eager(softmax=rounded)), QUERY, KEY, VALUE, FULL)


def test_a_soft_cap_that_the_author_ignores_is_noticed() -> None:
    def deaf(module: nn.Module, *args: Any, softcap: float | None = None, **kwargs: Any) -> Any:
        return eager()(module, *args, **kwargs)

    seam().attend(author(eager()), QUERY, KEY, VALUE, FULL, softcap=30.0)
    with pytest.raises(LeafMismatch, match="its own way"):
        seam().attend(author(deaf), QUERY, KEY, VALUE, FULL, softcap=30.0)


def with_sinks(attention: Any, sinks: Tensor) -> nn.Module:
    module = author(attention)
    module.register_parameter("sinks", nn.Parameter(sinks))
    return module


def own_sinks(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: Any) -> Any:
    """Takes the sinks from the module, whatever it is called with."""
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * scaling + mask
    sinks = module.sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    weights = torch.softmax(torch.cat([scores, sinks], -1), -1)[..., :-1]
    return (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2), weights


def test_sinks_that_the_author_takes_from_the_module_are_compared() -> None:
    sinks = torch.randn(HEADS)
    module = with_sinks(own_sinks, sinks)
    seam().attend(module, QUERY, KEY, VALUE, FULL, s_aux=module.sinks)
    assert torch.equal(module.sinks, sinks)


def test_sinks_that_the_author_ignores_are_noticed() -> None:
    module = with_sinks(eager(), torch.randn(HEADS))
    with pytest.raises(LeafMismatch, match="its own way"):
        seam().attend(module, QUERY, KEY, VALUE, FULL, s_aux=module.sinks)


def test_an_author_without_an_attention_function_is_refused() -> None:
    with pytest.raises(LeafMismatch, match="no attention function"):
        seam().attend(author(), QUERY, KEY, VALUE, FULL)


def test_a_bias_that_the_operator_does_not_take_is_refused() -> None:
    bias = torch.zeros(1, HEADS, NEW, NEW)
    with pytest.raises(LeafMismatch, match="'position_bias'"):
        seam().attend(author(eager()), QUERY, KEY, VALUE, FULL, position_bias=bias)


def test_tensors_that_the_author_does_not_read_are_no_obstacle() -> None:
    seam().attend(author(eager()), QUERY, KEY, VALUE, FULL, position_ids=torch.arange(NEW)[None])


def test_what_the_operator_cannot_do_is_refused_with_its_reason() -> None:
    with pytest.raises(LeafMismatch, match="3 query heads cannot share 2 key heads"):
        seam().attend(author(eager()), QUERY[:, :3], KEY, VALUE, FULL)


def test_a_model_is_as_before_after_a_trace() -> None:
    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    with attention_seam(model, seam()):
        assert model.config._attn_implementation == SEAM
    assert model.config._attn_implementation == "sdpa"
    assert SEAM not in ALL_ATTENTION_FUNCTIONS
