"""The author's rotary function is replaced where it is a plain rotation, and frequencies follow the length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from tests.conformance.cases import BY_NAME
from truecast.dialects.model import RotaryForm
from truecast.dialects.ort import ORT
from truecast.trace.rotary import RotarySeam, functional_frequencies, rotary_seam
from truecast.trace.skeleton import build_decoder, fake_tensors

SENTINEL = torch.zeros(1)


class Operator:
    """A rotary lowering that notes its calls."""

    def __init__(self, partial: bool = True) -> None:
        self.form, self.emitted = RotaryForm(False, False, 1, partial), 0

    def recognise(self, function: Any, head_axis: int) -> RotaryForm | None:
        return self.form if head_axis == 1 else None

    def emit(self, form: RotaryForm, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        self.emitted += 1
        return SENTINEL


def author(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1, **other: Any) -> Any:
    return q, k


def call(operator: Operator, width: int = 8, **kwargs: Any) -> Any:
    q, k, table = torch.zeros(2, 3, 5, 8), torch.zeros(2, 1, 5, 8), torch.zeros(2, 5, width)
    return RotarySeam(author, operator)(q, k, table, table, **kwargs)


def test_a_plain_call_is_the_operators() -> None:
    operator = Operator()
    assert call(operator) == (SENTINEL, SENTINEL)
    assert operator.emitted == 2


@pytest.mark.parametrize("kwargs", [{"unsqueeze_dim": 2}, {"position_ids": torch.zeros(2, 5)}])
def test_a_call_that_was_not_recognised_is_the_authors(kwargs: dict[str, Any]) -> None:
    operator = Operator()
    call(operator, **kwargs)
    assert operator.emitted == 0


@pytest.mark.parametrize(("partial", "width", "emitted"), [(True, 4, 2), (False, 4, 0), (False, 8, 2)])
def test_a_part_of_a_head_is_rotated_only_where_that_was_compared(partial: bool, width: int, emitted: int) -> None:
    operator = Operator(partial)
    call(operator, width)
    assert operator.emitted == emitted


def test_the_authors_function_is_back_after_a_trace() -> None:
    with fake_tensors():
        model = build_decoder(BY_NAME["llama"].config(), torch.float32)
    with pytest.raises(RuntimeError), rotary_seam(model, ORT.rotary) as seams:
        assert [type(seam) for seam in seams] == [RotarySeam]
        assert modeling_llama.apply_rotary_pos_emb is seams[0]
        raise RuntimeError
    assert modeling_llama.apply_rotary_pos_emb is apply_rotary_pos_emb


def rotary(case: str) -> LlamaRotaryEmbedding:
    config = BY_NAME[case].config()
    assert isinstance(config, LlamaConfig)
    return LlamaRotaryEmbedding(config)


def tables(module: LlamaRotaryEmbedding, length: int) -> tuple[Tensor, Tensor]:
    cos, sin = module(torch.zeros(1), torch.arange(length)[None])
    return cos, sin


@pytest.mark.parametrize("case", ["llama_rope_dynamic", "llama_rope_longrope", "llama_rope_llama3", "llama"])
def test_frequencies_depend_on_this_call_alone(case: str) -> None:
    module = rotary(case)
    with functional_frequencies(module):
        for length in (10, 100, 10, 40, 41, 48, 49, 64, 10):  # thresholds are at 40 and at 48
            for got, expected in zip(tables(module, length), tables(rotary(case), length), strict=True):
                torch.testing.assert_close(got, expected)


def test_the_rotary_module_is_as_before_afterwards() -> None:
    module = rotary("llama_rope_dynamic")
    before = module.inv_freq.clone()
    with functional_frequencies(module):
        tables(module, 100)
    assert torch.equal(module.inv_freq, before)
    assert "forward" not in module.__dict__
