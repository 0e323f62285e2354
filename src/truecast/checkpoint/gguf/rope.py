"""The rotary embedding of a GGUF file's model, as transformers' `rope_parameters`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from truecast.checkpoint.gguf.metadata import Facts
from truecast.checkpoint.model import Array
from truecast.errors import InputError

DEFAULT_ROPE_THETA = 10_000.0
"""llama.cpp's base frequency where a file states none."""
LLAMA3_FACTORS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Frequency bands of every Llama 3.1 to 3.3 release; files keep only the factors that follow from them."""


def rope_parameters(facts: Facts, default_theta: float = DEFAULT_ROPE_THETA) -> dict[str, Any]:
    """The `rope_parameters` of the transformers config.

    Raises:
        InputError: a kind of scaling that is not known.
    """
    theta = {"rope_theta": float(facts.number("rope.freq_base", default_theta))}
    if facts.has("rope_freqs.weight"):
        return {**theta, **_llama3_rope(facts, theta["rope_theta"])}
    kind = facts.get("rope.scaling.type") or "none"
    if kind == "linear":
        return {**theta, "rope_type": "linear", "factor": float(facts.number("rope.scaling.factor"))}
    if kind == "yarn":
        return {**theta, **_yarn_rope(facts)}
    if kind in {"none", "longrope"}:
        return {**theta, "rope_type": "default"}
    raise InputError(
        f"{facts.container.path} scales its rotary embedding by {kind!r}, which is not known; "
        "convert the original Hugging Face folder instead."
    )


def _yarn_rope(facts: Facts) -> dict[str, Any]:
    factor = float(facts.number("rope.scaling.factor"))
    rope: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": facts.size("rope.scaling.original_context_length"),
    }
    for key in ("beta_fast", "beta_slow"):
        if (value := facts.get(f"rope.scaling.yarn_{key}")) is not None:
            rope[key] = value
    attention = facts.number("rope.scaling.attn_factor", 1.0)
    # The file's factor multiplies YaRN's own temperature, where transformers wants their product.
    return rope if attention == 1.0 else {**rope, "attention_factor": attention * (0.1 * math.log(factor) + 1.0)}


def _llama3_rope(facts: Facts, theta: float) -> dict[str, Any]:
    """The rope settings behind a file's frequency factors: llama3's when they reproduce them, else the factors."""
    factors = facts.read_tensor("rope_freqs.weight").astype(np.float64)
    factor = round(float(factors.max()), 4)
    if np.allclose(factors, _llama3_factors(theta, 2 * len(factors), factor), rtol=1e-4):
        return {"rope_type": "llama3", "factor": factor, **LLAMA3_FACTORS}
    listed = factors.tolist()
    original = facts.size("context_length")
    return {
        "rope_type": "longrope",
        "short_factor": listed,
        "long_factor": listed,
        "attention_factor": 1.0,
        "original_max_position_embeddings": original,
    }


def _llama3_factors(theta: float, rotary_dim: int, factor: float) -> Array:
    """What llama3 scaling divides each of the rotary_dim / 2 inverse frequencies by."""
    wavelengths = 2 * math.pi * theta ** (np.arange(0, rotary_dim, 2) / rotary_dim)
    low, high = LLAMA3_FACTORS["low_freq_factor"], LLAMA3_FACTORS["high_freq_factor"]
    smooth = (LLAMA3_FACTORS["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    smooth = np.clip(smooth, 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / factor + smooth)


def partial_rope_parameters(facts: Facts) -> dict[str, Any]:
    """The same for a model that rotates only a part of each head."""
    return {**rope_parameters(facts), "partial_rotary_factor": facts.rotary_fraction}
