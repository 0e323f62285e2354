"""The rotary embedding of a GGUF file's model, as transformers' `rope_parameters`.

What a file leaves out is as in llama.cpp's loader (src/llama-model.cpp, `llama_model::load_hparams`): a base frequency
of 10000, linear scaling, a factor of 1 (also by the older key `rope.scale_linear`), YaRN's original context the whole.
"""

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
KINDS = ("none", "linear", "yarn", "longrope")
SINGLE, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
"""Tensors of what each frequency is divided by: in every text, or in texts up to the original context and beyond."""


def rope_parameters(facts: Facts) -> dict[str, Any]:
    """The `rope_parameters` of the transformers config.

    Raises:
        InputError: a kind or a factor of scaling that is not known.
    """
    theta = float(facts.number("rope.freq_base", DEFAULT_ROPE_THETA))
    kind = facts.get("rope.scaling.type")
    kind = "linear" if kind is None else kind
    if kind not in KINDS:
        raise InputError(
            f"{facts.container.path} scales its rotary embedding by {kind!r}, which is not known; "
            "convert the original Hugging Face folder instead."
        )
    if kind == "yarn":
        return {"rope_theta": theta, **_yarn(facts)}
    factor = _factor(facts) if kind != "none" else 1.0
    return {"rope_theta": theta, **_divided(facts, theta, factor)}


def partial_rope_parameters(facts: Facts) -> dict[str, Any]:
    """The same for a model that may rotate only a part of each head."""
    return {**rope_parameters(facts), "partial_rotary_factor": facts.rotary_fraction}


def _factor(facts: Facts) -> float:
    """What positions are divided by; 0 stands for 1, as in llama.cpp."""
    factor = float(facts.number("rope.scaling.factor", facts.number("rope.scale_linear", 0.0)))
    if not (math.isfinite(factor) and factor >= 0):
        raise InputError(
            f"{facts.container.path} has {factor} as the factor of its rotary embedding; convert the model again."
        )
    return factor or 1.0


def _yarn(facts: Facts) -> dict[str, Any]:
    factor = _factor(facts)
    odd = [name for name in (SINGLE, LONG) if facts.has(name)]
    odd += [key for key in ("ext", "attn") if facts.number(f"rope.scaling.yarn_{key}_factor", 1.0) != 1.0]
    if odd:
        raise InputError(
            f"{facts.container.path} scales its rotary embedding by yarn together with {odd[0]}, which transformers "
            "cannot; convert the original Hugging Face folder instead."
        )
    rope: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": facts.size(
            "rope.scaling.original_context_length", facts.size("context_length")
        ),
    }
    for key in ("beta_fast", "beta_slow"):
        if (value := facts.get(f"rope.scaling.yarn_{key}")) is not None:
            rope[key] = value
    attention = facts.number("rope.scaling.attn_factor", 1.0)
    # The file's factor multiplies YaRN's own temperature, where transformers wants their product.
    own = 0.1 * math.log(max(factor, 1.0)) + 1.0
    return rope if attention == 1.0 else {**rope, "attention_factor": attention * own}


def _divided(facts: Facts, theta: float, factor: float) -> dict[str, Any]:
    """Frequencies divided by one `factor`, and by factors of their own where the file lists some.

    Lists of factors are llama3's settings where these reproduce them, else transformers' longrope.
    """
    attention = float(facts.number("rope.scaling.attn_factor", 1.0))
    short, long = _listed(facts)
    if short is None or long is None:
        if attention == 1.0:
            return {"rope_type": "default"} if factor == 1.0 else {"rope_type": "linear", "factor": factor}
        short = long = np.ones(round(facts.head_dim * facts.rotary_fraction) // 2)
    elif short is long and factor == attention == 1.0 and (llama3 := _llama3(theta, long)) is not None:
        return llama3
    context = facts.size("context_length")
    return {
        "rope_type": "longrope",
        "short_factor": (short * factor).tolist(),
        "long_factor": (long * factor).tolist(),
        "attention_factor": attention,
        "original_max_position_embeddings": context
        if short is long
        else facts.size("rope.scaling.original_context_length", context),
    }


def _listed(facts: Facts) -> tuple[Array | None, Array | None]:
    """Factors for short and for long texts, float64 [rotary_dim / 2]; the very same array where there is one list."""
    if facts.has(SINGLE):
        factors = facts.read_tensor(SINGLE).astype(np.float64)
        return factors, factors
    if facts.has(SHORT) and facts.has(LONG):
        return facts.read_tensor(SHORT).astype(np.float64), facts.read_tensor(LONG).astype(np.float64)
    return None, None


def _llama3(theta: float, factors: Array) -> dict[str, Any] | None:
    """The llama3 settings behind frequency factors, if there are any."""
    factor = round(float(factors.max()), 4)
    if np.allclose(factors, _llama3_factors(theta, 2 * len(factors), factor), rtol=1e-4):
        return {"rope_type": "llama3", "factor": factor, **LLAMA3_FACTORS}
    return None


def _llama3_factors(theta: float, rotary_dim: int, factor: float) -> Array:
    """What llama3 scaling divides each of the rotary_dim / 2 inverse frequencies by."""
    wavelengths = 2 * math.pi * theta ** (np.arange(0, rotary_dim, 2) / rotary_dim)
    low, high = LLAMA3_FACTORS["low_freq_factor"], LLAMA3_FACTORS["high_freq_factor"]
    smooth = (LLAMA3_FACTORS["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    smooth = np.clip(smooth, 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / factor + smooth)
