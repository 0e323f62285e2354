"""GGUF metadata → the config.json that transformers expects.

Data flow: metadata and tensor names → `Facts` → the sizes every decoder has → the family's own settings.

What the file does not state is a constant of the architecture (an activation, a window pattern), written here with the
family; everything it does state is taken from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from truecast.checkpoint.gguf_facts import Facts
from truecast.checkpoint.gguf_rope import DEFAULT_ROPE_THETA, partial_rope_parameters, rope_parameters
from truecast.errors import InputError

GEMMA3_ROPE_THETA = 1_000_000.0
"""Gemma 3's full-attention layers where a file states none (Gemma3TextConfig)."""
GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
"""The 27 B models scale queries by hidden/heads instead of head_dim; llama.cpp tells them by their depth."""


@dataclass(frozen=True)
class Family:
    """The transformers side of an architecture; `details` gives the settings beyond the common ones."""

    model_type: str
    class_name: str
    details: Callable[[Facts], dict[str, Any]]


def hugging_face_config(facts: Facts) -> dict[str, Any]:
    """The content of config.json for the model that `facts` describe.

    Raises:
        InputError: the metadata lacks a size, or describes a variant that is not supported.
    """
    if facts.get("expert_count"):
        raise InputError(
            f"{facts.container.path} is a mixture of experts, which this version does not read from GGUF; "
            "convert the original Hugging Face folder instead."
        )
    family = FAMILIES[facts.architecture]
    identity = {"model_type": family.model_type, "architectures": [family.class_name], "dtype": "float32"}
    config = {**identity, **_common(facts), **family.details(facts)}
    return {key: value for key, value in config.items() if value is not None}


def _common(facts: Facts) -> dict[str, Any]:
    return {
        "vocab_size": facts.container.tensors["token_embd.weight"].shape[0],
        "hidden_size": facts.size("embedding_length"),
        "intermediate_size": facts.size("feed_forward_length"),
        "num_hidden_layers": facts.layers,
        "num_attention_heads": facts.heads,
        "num_key_value_heads": facts.kv_heads,
        "head_dim": facts.head_dim,
        "max_position_embeddings": facts.size("context_length"),
        "rope_parameters": rope_parameters(facts),
        **_tokens(facts),
    }


def _tokens(facts: Facts) -> dict[str, Any]:
    return {
        "tie_word_embeddings": not facts.has("output.weight"),
        "bos_token_id": facts.token("bos"),
        "eos_token_id": facts.token("eos"),
        "pad_token_id": facts.token("padding"),
    }


def _rms_eps(facts: Facts) -> dict[str, Any]:
    return {"rms_norm_eps": facts.number("attention.layer_norm_rms_epsilon")}


def _layer_eps(facts: Facts, name: str = "layer_norm_eps") -> dict[str, Any]:
    return {name: facts.number("attention.layer_norm_epsilon")}


def _llama(facts: Facts) -> dict[str, Any]:
    biases = {"attention_bias": facts.has("blk.0.attn_q.bias"), "mlp_bias": facts.has("blk.0.ffn_gate.bias")}
    return {"hidden_act": "silu", **_rms_eps(facts), **biases}


def _arcee(facts: Facts) -> dict[str, Any]:
    return {**_llama(facts), "hidden_act": "relu2", "mlp_bias": facts.has("blk.0.ffn_up.bias")}


def _granite(facts: Facts) -> dict[str, Any]:
    return {
        **_llama(facts),
        "logits_scaling": facts.number("logit_scale"),
        "attention_multiplier": facts.number("attention.scale"),
        "embedding_multiplier": facts.number("embedding_scale"),
        "residual_multiplier": facts.number("residual_scale"),
    }


def _qwen(facts: Facts) -> dict[str, Any]:
    return {"hidden_act": "silu", **_rms_eps(facts), "use_sliding_window": False}


def _gemma(facts: Facts) -> dict[str, Any]:
    return {"hidden_act": "gelu_pytorch_tanh", **_rms_eps(facts)}


def _gemma_scaled(facts: Facts) -> dict[str, Any]:
    wide = facts.layers == GEMMA_27B_LAYERS[facts.architecture]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        **_rms_eps(facts),
        "query_pre_attn_scalar": facts.size("embedding_length") // facts.heads if wide else facts.head_dim,
        "sliding_window": facts.size("attention.sliding_window"),
    }


def _gemma2(facts: Facts) -> dict[str, Any]:
    return {
        **_gemma_scaled(facts),
        "layer_types": _layer_types(facts, pattern=2),
        "attn_logit_softcapping": facts.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": facts.number("final_logit_softcapping", 30.0),
    }


def _gemma3(facts: Facts) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": float(facts.number("rope.freq_base_swa", DEFAULT_ROPE_THETA))}
    rope = {"full_attention": rope_parameters(facts, GEMMA3_ROPE_THETA), "sliding_attention": local}
    return {**_gemma_scaled(facts), "layer_types": _layer_types(facts, pattern=6), "rope_parameters": rope}


def _layer_types(facts: Facts, pattern: int) -> list[str]:
    """Every `pattern`-th layer attends to everything, the others to a window."""
    layers = range(1, facts.layers + 1)
    return ["sliding_attention" if layer % pattern else "full_attention" for layer in layers]


def _phi2(facts: Facts) -> dict[str, Any]:
    return {"hidden_act": "gelu_new", **_layer_eps(facts), "rope_parameters": partial_rope_parameters(facts)}


def _phi3(facts: Facts) -> dict[str, Any]:
    original = facts.size("rope.scaling.original_context_length", facts.size("context_length"))
    rope = partial_rope_parameters(facts)
    if facts.has("rope_factors_long.weight"):
        rope |= {
            "rope_type": "longrope",
            "short_factor": facts.read_tensor("rope_factors_short.weight").tolist(),
            "long_factor": facts.read_tensor("rope_factors_long.weight").tolist(),
            "original_max_position_embeddings": original,
        }
    return {
        "hidden_act": "silu",
        **_rms_eps(facts),
        "rope_parameters": rope,
        "original_max_position_embeddings": original,
        "sliding_window": facts.get("attention.sliding_window") or None,
    }


_NOT_IN_GPT2 = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rope_parameters",
)
"""Settings that GPT2Config has under other names, or not at all."""


def _gpt2(facts: Facts) -> dict[str, Any]:
    renamed = {
        "n_embd": facts.size("embedding_length"),
        "n_layer": facts.layers,
        "n_head": facts.heads,
        "n_inner": facts.size("feed_forward_length"),
        "n_positions": facts.size("context_length"),
    }
    return {
        **dict.fromkeys(_NOT_IN_GPT2),
        **renamed,
        "activation_function": "gelu_new",
        **_layer_eps(facts, "layer_norm_epsilon"),
    }


def _gptneox(facts: Facts) -> dict[str, Any]:
    return {
        "hidden_act": "gelu",
        **_layer_eps(facts),
        "rope_parameters": partial_rope_parameters(facts),
        "use_parallel_residual": bool(facts.number("use_parallel_residual", True)),
    }


def _stablelm(facts: Facts) -> dict[str, Any]:
    if facts.has("blk.0.attn_q_norm.weight"):
        raise InputError(
            f"{facts.container.path} normalizes queries per head (StableLM 2 12B), which this version does not read "
            "from GGUF; convert the original Hugging Face folder instead."
        )
    return {
        "hidden_act": "silu",
        **_layer_eps(facts),
        "rope_parameters": partial_rope_parameters(facts),
        "use_qkv_bias": facts.has("blk.0.attn_q.bias"),
        "use_parallel_residual": not facts.has("blk.0.ffn_norm.weight"),
    }


def _starcoder2(facts: Facts) -> dict[str, Any]:
    return {
        "hidden_act": "gelu_pytorch_tanh",
        **_layer_eps(facts, "norm_epsilon"),
        "use_bias": facts.has("blk.0.attn_q.bias"),
    }


def _nemotron(facts: Facts) -> dict[str, Any]:
    return {"hidden_act": "relu2", **_layer_eps(facts, "norm_eps"), "rope_parameters": partial_rope_parameters(facts)}


def _olmo(facts: Facts) -> dict[str, Any]:
    return {"hidden_act": "silu", "clip_qkv": facts.get("attention.clamp_kqv")}


def _olmo2(facts: Facts) -> dict[str, Any]:
    return {"hidden_act": "silu", **_rms_eps(facts)}


def _smollm3(facts: Facts) -> dict[str, Any]:
    return {**_llama(facts), "no_rope_layer_interval": 4}


def _cohere(facts: Facts) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        **_layer_eps(facts),
        "logit_scale": facts.number("logit_scale"),
        "use_qk_norm": facts.has("blk.0.attn_q_norm.weight"),
    }


def _cohere2(facts: Facts) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        **_layer_eps(facts),
        "logit_scale": facts.number("logit_scale"),
        "sliding_window": facts.size("attention.sliding_window"),
        "layer_types": _layer_types(facts, pattern=4),
    }


FAMILIES: Mapping[str, Family] = {
    "arcee": Family("arcee", "ArceeForCausalLM", _arcee),
    "cohere2": Family("cohere2", "Cohere2ForCausalLM", _cohere2),
    "command-r": Family("cohere", "CohereForCausalLM", _cohere),
    "gemma": Family("gemma", "GemmaForCausalLM", _gemma),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", _gemma2),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", _gemma3),
    "gpt2": Family("gpt2", "GPT2LMHeadModel", _gpt2),
    "gptneox": Family("gpt_neox", "GPTNeoXForCausalLM", _gptneox),
    "granite": Family("granite", "GraniteForCausalLM", _granite),
    "llama": Family("llama", "LlamaForCausalLM", _llama),
    "nemotron": Family("nemotron", "NemotronForCausalLM", _nemotron),
    "olmo": Family("olmo", "OlmoForCausalLM", _olmo),
    "olmo2": Family("olmo2", "Olmo2ForCausalLM", _olmo2),
    "phi2": Family("phi", "PhiForCausalLM", _phi2),
    "phi3": Family("phi3", "Phi3ForCausalLM", _phi3),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", _qwen),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", _qwen),
    "smollm3": Family("smollm3", "SmolLM3ForCausalLM", _smollm3),
    "stablelm": Family("stablelm", "StableLmForCausalLM", _stablelm),
    "starcoder2": Family("starcoder2", "Starcoder2ForCausalLM", _starcoder2),
}
