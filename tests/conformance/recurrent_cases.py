"""State space models and hybrids: layers that carry a convolution's last inputs and a recurrent state, and others."""

from __future__ import annotations

from typing import Any

from tests.conformance.expert_cases import LOCAL_EXPERTS
from tests.conformance.shapes import EPSILON, FULL, SHAPE
from tests.tiny import Case

STATE_SPACE: dict[str, Any] = SHAPE | {"state_size": 8, "layer_norm_epsilon": EPSILON}

MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
"""A layer of Mamba 2, as hybrids name its sizes."""
JAMBA: dict[str, Any] = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "mamba_d_state": 8,
}

STATE_SPACES = [
    Case("mamba", "MambaConfig", STATE_SPACE, {"activation": {"hidden_act": "gelu"}}),
    Case("mamba_biases", "MambaConfig", STATE_SPACE | {"use_bias": True, "use_conv_bias": False, "time_step_rank": 3}),
    Case("falcon_mamba", "FalconMambaConfig", STATE_SPACE, {"norm of B, C and dt": {"mixer_rms_eps": 1.0}}),
    Case(
        "mamba2",
        "Mamba2Config",
        STATE_SPACE | {"num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 16},
        {"step limits": {"time_step_limit": (0.5, 0.6)}},
    ),
    Case("mamba2_one_group", "Mamba2Config", STATE_SPACE | {"num_heads": 8, "head_dim": 16, "n_groups": 1}),
]

HYBRIDS = [
    Case("jamba", "JambaConfig", SHAPE | JAMBA),
    Case("bamba", "BambaConfig", SHAPE | MAMBA | {"attn_layer_indices": [1]}),
    Case(
        "granitemoehybrid",
        "GraniteMoeHybridConfig",
        SHAPE
        | LOCAL_EXPERTS
        | MAMBA
        | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 64, "position_embedding_type": "rope"},
    ),
    Case("falcon_h1", "FalconH1Config", SHAPE | MAMBA | {"mamba_d_ssm": 128}),
    Case("lfm2", "Lfm2Config", SHAPE | {"layer_types": ["conv", FULL], "norm_eps": EPSILON}),
    Case(
        "lfm2_moe",
        "Lfm2MoeConfig",
        SHAPE
        | {
            "layer_types": ["conv", FULL],
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "num_dense_layers": 1,
        },
    ),
]
RECURRENT_CASES: list[Case] = [*STATE_SPACES, *HYBRIDS]
