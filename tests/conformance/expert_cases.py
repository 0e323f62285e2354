"""Mixtures of experts: routers of every kind, experts of their own and shared ones, gates with and without limits."""

from __future__ import annotations

from typing import Any

from tests.conformance.shapes import DEFAULT_ROPE, FULL, SHAPE, SLIDING, WIDE_WINDOW, WINDOW, rope
from tests.tiny import Case

EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LOCAL_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
FEWER: dict[str, Any] = {"num_experts_per_tok": 1}

EXPERT_CASES = [
    Case("mixtral", "MixtralConfig", SHAPE | LOCAL_EXPERTS, {"second expert": FEWER}),
    Case(
        "qwen2_moe",
        "Qwen2MoeConfig",
        SHAPE | EXPERTS | {"shared_expert_intermediate_size": 48},
        {"second expert": FEWER, "sum of the weights": {"norm_topk_prob": True}},
    ),
    Case(
        "qwen3_moe",
        "Qwen3MoeConfig",
        SHAPE | EXPERTS | {"head_dim": 16},
        {"second expert": FEWER, "sum of the weights": {"norm_topk_prob": True}},
    ),
    Case("olmoe", "OlmoeConfig", SHAPE | EXPERTS, {"second expert": FEWER}),
    Case(
        "granitemoe",
        "GraniteMoeConfig",
        SHAPE | LOCAL_EXPERTS | {"attention_multiplier": 0.3},
        {"second expert": FEWER},
    ),
    Case(
        "gpt_oss",
        "GptOssConfig",
        SHAPE
        | LOCAL_EXPERTS
        | {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "layer_types": [SLIDING, FULL],
            "rope_parameters": rope("yarn", factor=4.0, original_max_position_embeddings=32, truncate=False),
        },
        {"second expert": FEWER, "window": WIDE_WINDOW, "rope": {"rope_parameters": DEFAULT_ROPE}},
    ),
    Case(
        "dots1",
        "Dots1Config",
        SHAPE | {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
        {"second expert": FEWER},
    ),
]
