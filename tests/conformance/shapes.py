"""The numbers the cases share: a small shape, the rope types with thresholds inside 64 tokens, and window settings."""

from __future__ import annotations

from typing import Any

from tests.tiny import END_TOKEN_ID

EPSILON = 3e-3
"""Epsilon of every norm: large enough that using the default instead is far above float32 noise."""

WINDOW = 8
"""Tokens seen by a sliding layer."""

CONTEXT = 128

FULL = "full_attention"
SLIDING = "sliding_attention"

WIDE_WINDOW: dict[str, Any] = {"sliding_window": 4 * CONTEXT}
"""Undoes a window without changing which layers slide (some models decide on rope by that)."""

SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": EPSILON,
    "tie_word_embeddings": False,
    "bos_token_id": END_TOKEN_ID,
    "eos_token_id": END_TOKEN_ID,
    "pad_token_id": END_TOKEN_ID,
}


def rope(kind: str, theta: float = 10000.0, **parameters: Any) -> dict[str, Any]:
    """A `rope_parameters` entry."""
    return {"rope_type": kind, "rope_theta": theta, **parameters}


DEFAULT_ROPE = rope("default")
WHOLE_ROPE = rope("default", partial_rotary_factor=1.0)
"""Undoes a partial rotary embedding (some types are partial unless told otherwise)."""

ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_parameters": rope("linear", factor=4.0)},
    "dynamic": {"rope_parameters": rope("dynamic", factor=3.0), "max_position_embeddings": 40},
    "llama3": {
        "rope_parameters": rope(
            "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
        )
    },
    "yarn": {"rope_parameters": rope("yarn", factor=4.0, original_max_position_embeddings=32)},
    "longrope": {
        "rope_parameters": rope(
            "longrope",
            original_max_position_embeddings=48,
            short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
            long_factor=[1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0],
        )
    },
}
"""Settings of each rope type. The dynamic type stretches beyond `max_position_embeddings` itself."""
