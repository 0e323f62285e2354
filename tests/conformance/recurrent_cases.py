"""State space models: a layer carries the last inputs of a convolution and a recurrent state, no keys and values."""

from __future__ import annotations

from typing import Any

from tests.conformance.shapes import EPSILON, SHAPE
from tests.tiny import Case

STATE_SPACE: dict[str, Any] = SHAPE | {"state_size": 8, "layer_norm_epsilon": EPSILON}

RECURRENT_CASES: list[Case] = [
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
