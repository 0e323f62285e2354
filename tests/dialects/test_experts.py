"""Experts are recognised by what their author's own code computes, and become operators that compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.muse_spark.modeling_muse_spark import MuseSparkExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from tests.dialects.running import run_graph
from truecast.dialects.experts import ACTIVATIONS, UNCHOSEN, ExpertsForm, Gate, between, recognise

SILU = Gate("swiglu")
GPT_OSS = Gate("swiglu", 1.702, 1.0, 7.0, interleaved=True)


def made(kind: type[nn.Module], config: str, **settings: Any) -> nn.Module:
    with torch.device("meta"):
        return kind(getattr(transformers, config)(**settings))


@pytest.mark.parametrize(
    ("kind", "config", "form"),
    [
        (MixtralExperts, "MixtralConfig", ExpertsForm("gate_up_proj", "down_proj", "", "", False, SILU)),
        (Qwen3MoeExperts, "Qwen3MoeConfig", ExpertsForm("gate_up_proj", "down_proj", "", "", False, SILU)),
        (OlmoeExperts, "OlmoeConfig", ExpertsForm("gate_up_proj", "down_proj", "", "", False, SILU)),
        (
            GptOssExperts,
            "GptOssConfig",
            ExpertsForm("gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias", True, GPT_OSS),
        ),
        (
            MiniMaxM3VLExperts,
            "MiniMaxM3VLTextConfig",
            ExpertsForm("gate_up_proj", "down_proj", "", "", False, Gate("swiglu", 1.702, 1.0, 7.0)),
        ),
        (NemotronHExperts, "NemotronHConfig", ExpertsForm("up_proj", "down_proj", "", "", False, None)),
    ],
)
def test_the_authors_experts_are_recognised(kind: type[nn.Module], config: str, form: ExpertsForm) -> None:
    assert recognise(made(kind, config)) == form


def test_a_norm_after_each_expert_is_something_else() -> None:
    assert recognise(made(MuseSparkExperts, "MuseSparkTextConfig")) is None


class UpFirst(GptOssExperts):
    """Its gate is the second half."""

    def _apply_gate(self, x: Tensor) -> Tensor:
        up, gate = x.chunk(2, -1)
        return nn.functional.silu(gate) * up


class OneSided(MixtralExperts):
    """Its loop does not use its own gate."""

    def _apply_gate(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x.chunk(2, -1)[0])


class Doubled(MixtralExperts):
    """Its loop does what no interface says."""

    def forward(self, *args: Any) -> Tensor:
        return 2 * MixtralExperts.forward.__wrapped__(self, *args)


def test_a_gate_that_no_operator_has_stays_the_authors() -> None:
    form = recognise(made(UpFirst, "GptOssConfig"))
    assert form is not None and form.gate is None


@pytest.mark.parametrize("kind", [Doubled, OneSided])
def test_a_loop_that_computes_something_else_is_not_taken(kind: type[nn.Module]) -> None:
    assert recognise(made(kind, "MixtralConfig")) is None


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh", "relu2"])
def test_other_activations_stay_the_authors(activation: str) -> None:
    form = recognise(made(MixtralExperts, "MixtralConfig", hidden_act=activation))
    assert form is not None and form.gate is None


def test_a_limit_is_told_from_none() -> None:
    module = made(GptOssExperts, "GptOssConfig")
    x = torch.linspace(-20, 20, 64, dtype=torch.float64)[None]
    assert not torch.allclose(between(module, x), Gate("swiglu", 1.702, 1.0, None, True)(x))
    assert torch.allclose(between(module, x), GPT_OSS(x))


@pytest.mark.parametrize(
    "gate", [Gate(kind) for kind in sorted(ACTIVATIONS - {"swiglu"})] + [Gate("swiglu", interleaved=True), GPT_OSS]
)
def test_the_operator_computes_the_formula(gate: Gate) -> None:
    """MoE, given logarithms of weights, weighs by the weights over their sum; the formula between its products."""
    numbers = np.random.default_rng(0)
    experts, width, inner, tokens, k = 4, 8, 6, 9, 2
    outer = inner * (2 if gate.activation == "swiglu" else 1)
    first, second, bias = (
        3 * numbers.standard_normal(shape).astype(np.float32)
        for shape in ((experts, outer, width), (experts, width, inner), (experts, outer))
    )
    x = numbers.standard_normal((tokens, width)).astype(np.float32)
    chosen = np.stack([numbers.permutation(experts)[:k] for _ in range(tokens)])
    weights = numbers.random((tokens, k)).astype(np.float32) + 0.01
    logits = np.full((tokens, experts), UNCHOSEN, np.float32)
    np.put_along_axis(logits, chosen, np.log(weights), 1)
    attributes: dict[str, Any] = {
        "k": k,
        "activation_type": gate.activation,
        "activation_alpha": gate.alpha,
        "activation_beta": gate.beta,
        "normalize_routing_weights": 1,
        "swiglu_fusion": int(gate.activation == "swiglu"),
    }
    if gate.limit is not None:
        attributes["swiglu_limit"] = gate.limit
    got = run_moe([x, logits, first, bias, second], attributes) * weights.sum(1, keepdims=True)
    want = np.zeros_like(x, np.float64)
    for row in range(tokens):
        for expert, weight in zip(chosen[row], weights[row], strict=True):
            middle = gate(torch.from_numpy((first[expert] @ x[row] + bias[expert]).astype(np.float64)))
            want[row] += weight * (second[expert] @ middle.numpy())
    np.testing.assert_allclose(got, want, atol=3e-6 * np.abs(want).max())


def run_moe(arrays: list[np.ndarray], attributes: dict[str, Any]) -> np.ndarray:
    values = [
        ir.Value(name=str(i), shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.FLOAT))
        for i, array in enumerate(arrays)
    ]
    out = ir.Value(name="out", type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("MoE", values, attributes, domain="com.microsoft", outputs=[out])
    opsets = {"": 21, "com.microsoft": 1}
    graph = ir.Graph(values, [out], nodes=[node], opset_imports=opsets, name="one")
    return run_graph(ir.Model(graph, ir_version=10), {str(i): array for i, array in enumerate(arrays)})[0]
