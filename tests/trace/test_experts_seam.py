"""The experts seam is there for a trace and gone after it, and refuses what it cannot put into operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from tests.conformance.cases import BY_NAME
from truecast.dialects.ort import ORT
from truecast.dialects.standard import STANDARD
from truecast.errors import InputError
from truecast.trace.decoder import trace_decoder
from truecast.trace.experts import experts_seam, forms_of
from truecast.trace.seams import SEAM


@pytest.fixture
def model() -> PreTrainedModel:
    config = BY_NAME["qwen3_moe"].config()
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    return made


def test_a_model_is_as_before_after_a_trace(model: PreTrainedModel) -> None:
    with experts_seam(model, ORT) as seam:
        assert model.config._experts_implementation == SEAM
        assert ALL_EXPERTS_FUNCTIONS[SEAM] is seam
    assert model.config._experts_implementation == "eager"
    assert SEAM not in ALL_EXPERTS_FUNCTIONS


def test_every_layers_experts_are_found_by_name(model: PreTrainedModel) -> None:
    assert set(forms_of(model)) == {f"model.layers.{layer}.mlp.experts" for layer in range(2)}


def test_experts_of_their_own_kind_are_refused_by_name(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(model.get_submodule("model.layers.0.mlp.experts"))
    author: Any = kind.forward.__wrapped__  # type: ignore[attr-defined]

    def other(self: nn.Module, *args: Tensor) -> Tensor:
        return torch.tanh(author(self, *args))

    monkeypatch.setattr(kind.forward, "__wrapped__", other)
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.experts .*Experts.* something else"):
        forms_of(model)


def test_the_trace_says_what_became_of_the_experts() -> None:
    config = BY_NAME["gpt_oss"].config()
    fused, plain = (trace_decoder(config, dialect) for dialect in (ORT, STANDARD))
    assert (fused.lowered["experts"], fused.lowered["attention"], fused.lowered["rotary"]) == (2, 2, 4)
    assert not fused.traced
    assert "experts" not in plain.lowered and "every expert is computed" in plain.traced["experts"]
    kinds = [[node.op_type for node in trace.model.graph] for trace in (fused, plain)]
    assert kinds[0].count("Experts") == 2 and kinds[1].count("ExpertProduct") == 4


def test_an_activation_without_an_operator_is_traced_in_the_authors_form() -> None:
    config = BY_NAME["mixtral"].config(hidden_act="gelu")
    trace = trace_decoder(config, ORT)
    kinds = [node.op_type for node in trace.model.graph]
    assert kinds.count("ExpertProduct") == 4 and "Experts" not in kinds
    assert trace.lowered["attention"] == 2 and "experts" in trace.traced
