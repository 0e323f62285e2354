"""The architectures of GGUF files that are read, and the settings of each beyond what every decoder has.

What the file does not state is a constant of the architecture (an activation, a window pattern), written here with the
family; everything it does state is taken from it. Facts from llama.cpp's conversion scripts and the transformers
configuration classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from truecast.checkpoint.gguf.experts import experts, normalized, shape_of, unknown_weights
from truecast.checkpoint.gguf.metadata import Facts
from truecast.checkpoint.gguf.rope import DEFAULT_ROPE_THETA, partial_rope_parameters, rope_parameters
from truecast.errors import InputError

GEMMA2_WINDOW = 4096
"""Window of Gemma 2 where a file states none, as the first ones do not (llama.cpp's loader)."""
GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
"""The 27 B models scale queries by hidden/heads instead of head_dim; llama.cpp tells them by their depth."""


@dataclass(frozen=True)
class Family:
    """The transformers side of an architecture.

    `details` gives the settings beyond the common ones; a setting that is None there is left out of config.json, unless
    it is `nullable`: one whose null means something else than its absence. `mixes` says that `details` knows mixtures
    of experts.
    """

    model_type: str
    class_name: str
    details: Callable[[Facts], dict[str, Any]]
    nullable: frozenset[str] = frozenset()
    mixes: bool = False


def _rms_eps(facts: Facts) -> dict[str, Any]:
    return {"rms_norm_eps": facts.number("attention.layer_norm_rms_epsilon")}


def _layer_eps(facts: Facts, name: str = "layer_norm_eps") -> dict[str, Any]:
    return {name: facts.number("attention.layer_norm_epsilon")}


def _llama(facts: Facts) -> dict[str, Any]:
    biases = {"attention_bias": facts.has("blk.0.attn_q.bias"), "mlp_bias": facts.has("blk.0.ffn_gate.bias")}
    return {"hidden_act": "silu", **_rms_eps(facts), **biases}


def _llama_or_mixtral(facts: Facts) -> dict[str, Any]:
    """Llama, or Mixtral, which llama.cpp tells by its experts; it always makes their weights add up to one."""
    if not facts.experts:
        return _llama(facts)
    if not normalized(facts, True):
        raise unknown_weights(facts, "expert_weights_norm")
    identity = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    return {**identity, "hidden_act": "silu", **_rms_eps(facts), **experts(facts, "intermediate_size")}


def _arcee(facts: Facts) -> dict[str, Any]:
    return {**_llama(facts), "hidden_act": "relu2", "mlp_bias": facts.has("blk.0.ffn_up.bias")}


def _granite(facts: Facts) -> dict[str, Any]:
    if facts.get("rope.scaling.finetuned") is False:  # llama.cpp's switch of this architecture
        raise InputError(
            f"{facts.container.path} has no rotary positions, which transformers' Granite always has; "
            "convert the original Hugging Face folder instead."
        )
    return {
        **_llama(facts),
        "logits_scaling": facts.number("logit_scale"),
        "attention_multiplier": facts.number("attention.scale"),
        "embedding_multiplier": facts.number("embedding_scale"),
        "residual_multiplier": facts.number("residual_scale"),
    }


def _qwen(facts: Facts) -> dict[str, Any]:
    return {"hidden_act": "silu", **_rms_eps(facts), "use_sliding_window": False}


def _qwen2moe(facts: Facts) -> dict[str, Any]:
    return {
        **_qwen(facts),
        **experts(facts, "moe_intermediate_size"),
        "norm_topk_prob": normalized(facts, False),
        "shared_expert_intermediate_size": shape_of(facts, "blk.0.ffn_gate_shexp.weight")[0],
        "qkv_bias": facts.has("blk.0.attn_q.bias"),
    }


def _qwen3moe(facts: Facts) -> dict[str, Any]:
    mixture = experts(facts, "moe_intermediate_size")
    return {**_qwen(facts), **mixture, "norm_topk_prob": normalized(facts, True)}


def _gemma(facts: Facts) -> dict[str, Any]:
    return {"hidden_act": "gelu_pytorch_tanh", **_rms_eps(facts)}


def _gemma_scaled(facts: Facts) -> dict[str, Any]:
    wide = facts.layers == GEMMA_27B_LAYERS[facts.architecture]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        **_rms_eps(facts),
        "query_pre_attn_scalar": facts.size("embedding_length") // facts.heads if wide else facts.head_dim,
    }


def _gemma2(facts: Facts) -> dict[str, Any]:
    return {
        **_gemma_scaled(facts),
        "sliding_window": facts.size("attention.sliding_window", GEMMA2_WINDOW),
        "layer_types": _layer_types(facts, pattern=2, window=GEMMA2_WINDOW),
        "attn_logit_softcapping": facts.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": facts.number("final_logit_softcapping", 30.0),
    }


def _gemma3(facts: Facts) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": float(facts.number("rope.freq_base_swa", DEFAULT_ROPE_THETA))}
    return {
        **_gemma_scaled(facts),
        "sliding_window": facts.size("attention.sliding_window"),
        "layer_types": _layer_types(facts, pattern=6),
        "rope_parameters": {"full_attention": rope_parameters(facts), "sliding_attention": local},
    }


def _layer_types(facts: Facts, pattern: int, window: int | None = None) -> list[str]:
    """Which layers attend to a window: as the file lists them, else all but every `pattern`-th; without one, none.

    `window` stands for one that the file does not state.
    """
    listed = facts.get("attention.sliding_window_pattern")
    windowed = facts.number("attention.sliding_window", window or 0)
    if isinstance(listed, np.ndarray) and len(listed) == facts.layers:
        slides = [bool(value) for value in listed]
    else:
        every = listed if isinstance(listed, int) and listed > 0 else pattern
        slides = [bool(layer % every) for layer in range(1, facts.layers + 1)]
    return ["sliding_attention" if windowed and slide else "full_attention" for slide in slides]


def _phi2(facts: Facts) -> dict[str, Any]:
    return {"hidden_act": "gelu_new", **_layer_eps(facts), "rope_parameters": partial_rope_parameters(facts)}


def _phi3(facts: Facts) -> dict[str, Any]:
    context = facts.size("context_length")
    return {
        "hidden_act": "silu",
        **_rms_eps(facts),
        "rope_parameters": partial_rope_parameters(facts),
        "original_max_position_embeddings": facts.size("rope.scaling.original_context_length", context),
        "sliding_window": facts.get("attention.sliding_window") or None,
    }


_NOT_OF_GPT2 = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rope_parameters",
)
"""Settings that GPT-2 and its kin have under other names, or not at all."""


def _without(*settings: str) -> dict[str, Any]:
    """Common settings that a family does not have."""
    return dict.fromkeys(settings)


def _gpt2(facts: Facts) -> dict[str, Any]:
    return {
        **_without(*_NOT_OF_GPT2),
        "n_embd": facts.size("embedding_length"),
        "n_layer": facts.layers,
        "n_head": facts.heads,
        "n_inner": facts.size("feed_forward_length"),
        "n_positions": facts.size("context_length"),
        "activation_function": "gelu_new",
        **_layer_eps(facts, "layer_norm_epsilon"),
    }


def _starcoder(facts: Facts) -> dict[str, Any]:
    return {**_gpt2(facts), "activation_function": "gelu_pytorch_tanh", "multi_query": facts.kv_heads == 1}


def _bloom(facts: Facts) -> dict[str, Any]:
    return {
        **_without(*_NOT_OF_GPT2),
        "hidden_size": facts.size("embedding_length"),
        "n_layer": facts.layers,
        "n_head": facts.heads,
        "seq_length": facts.size("context_length"),
        **_layer_eps(facts, "layer_norm_epsilon"),
    }


def _mpt(facts: Facts) -> dict[str, Any]:
    slopes = facts.number("attention.max_alibi_bias")
    if not slopes:
        raise InputError(
            f"{facts.container.path} has learned positions, which transformers' MPT does not have; "
            "convert another model."
        )
    attention = {"alibi": True, "alibi_bias_max": int(slopes), "clip_qkv": facts.get("attention.clamp_kqv")}
    return {
        **_without(*_NOT_OF_GPT2),
        "d_model": facts.size("embedding_length"),
        "n_layers": facts.layers,
        "n_heads": facts.heads,
        "expansion_ratio": facts.size("feed_forward_length") // facts.size("embedding_length"),
        "max_seq_len": facts.size("context_length"),
        "attn_config": attention,
        **_layer_eps(facts, "layer_norm_epsilon"),
    }


def _falcon(facts: Facts) -> dict[str, Any]:
    two_norms = facts.has("blk.0.attn_norm_2.weight")
    return {
        **_without("intermediate_size", "num_key_value_heads", "head_dim"),
        "ffn_hidden_size": facts.size("feed_forward_length"),
        "num_kv_heads": facts.kv_heads,
        "multi_query": facts.kv_heads == 1,
        "new_decoder_architecture": facts.kv_heads > 1,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "parallel_attn": True,
        "bias": facts.has("blk.0.attn_qkv.bias"),
        "alibi": False,
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
    return {
        "hidden_act": "silu",
        **_layer_eps(facts),
        "rope_parameters": partial_rope_parameters(facts),
        "use_qkv_bias": facts.has("blk.0.attn_q.bias"),
        "use_parallel_residual": not facts.has("blk.0.ffn_norm.weight"),
        "qk_layernorm": facts.has("blk.0.attn_q_norm.weight"),
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
    """OLMo 2, or OLMo 3, which llama.cpp tells by its window; YaRN scales only the layers without one."""
    common = {"hidden_act": "silu", **_rms_eps(facts)}
    if not facts.get("attention.sliding_window"):
        return common
    full = rope_parameters(facts)
    theta = float(facts.number("rope.freq_base_swa", full["rope_theta"]))
    return {
        **common,
        "model_type": "olmo3",
        "architectures": ["Olmo3ForCausalLM"],
        "sliding_window": facts.size("attention.sliding_window"),
        "layer_types": _layer_types(facts, pattern=4),
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": theta},
        },
    }


def _olmoe(facts: Facts) -> dict[str, Any]:
    common = {"hidden_act": "silu", **_rms_eps(facts), "clip_qkv": facts.get("attention.clamp_kqv")}
    return {**common, **experts(facts, "intermediate_size"), "norm_topk_prob": normalized(facts, False)}


def _gpt_oss(facts: Facts) -> dict[str, Any]:
    rope = rope_parameters(facts)
    return {
        "hidden_act": "silu",
        **_rms_eps(facts),
        **experts(facts, "intermediate_size"),
        "attention_bias": facts.has("blk.0.attn_q.bias"),
        "sliding_window": facts.size("attention.sliding_window"),
        "layer_types": _layer_types(facts, pattern=2),
        # The bounds of the model's YaRN are not rounded; no file states it.
        "rope_parameters": {**rope, "truncate": False} if rope["rope_type"] == "yarn" else rope,
    }


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


def _glm(facts: Facts) -> dict[str, Any]:
    if facts.get("rope.dimension_sections") is not None:
        raise InputError(
            f"{facts.container.path} is the language half of a vision model, whose positions have several parts; "
            "give a model of text alone."
        )
    biased = facts.has("blk.0.attn_q.bias") or facts.has("blk.0.attn_qkv.bias")
    rope = partial_rope_parameters(facts)
    return {"hidden_act": "silu", **_rms_eps(facts), "attention_bias": biased, "rope_parameters": rope}


def _exaone4(facts: Facts) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        **_rms_eps(facts),
        # No window at all means rotary positions in every layer; with one, only in the layers that have it.
        "sliding_window": facts.get("attention.sliding_window") or None,
        "layer_types": _layer_types(facts, pattern=4),
    }


def _seed_oss(facts: Facts) -> dict[str, Any]:
    return {**_llama(facts), "attention_out_bias": facts.has("blk.0.attn_output.bias")}


def _ernie(facts: Facts) -> dict[str, Any]:
    return {"hidden_act": "silu", **_rms_eps(facts), "use_bias": facts.has("blk.0.attn_q.bias")}


def _apertus(facts: Facts) -> dict[str, Any]:
    return {**_llama(facts), "hidden_act": "xielu", "mlp_bias": None}


def _mistral3(facts: Facts) -> dict[str, Any]:
    """Ministral 3, which llama.cpp tells by the scaling of its queries, or the Mistral of the same architecture."""
    scaling = facts.get("attention.temperature_scale")
    common = {"hidden_act": "silu", **_rms_eps(facts), "sliding_window": None}
    if not scaling:
        return {**common, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    # The file states one factor for both of YaRN's: their quotient is what counts.
    factor = facts.number("rope.scaling.yarn_log_multiplier", 1.0)
    rope = {"llama_4_scaling_beta": scaling, "mscale": factor, "mscale_all_dim": factor}
    return {**common, "rope_parameters": {**rope_parameters(facts), **rope}}


FAMILIES: Mapping[str, Family] = {
    "apertus": Family("apertus", "ApertusForCausalLM", _apertus),
    "arcee": Family("arcee", "ArceeForCausalLM", _arcee),
    "bloom": Family("bloom", "BloomForCausalLM", _bloom),
    "chatglm": Family("glm", "GlmForCausalLM", _glm),
    "cohere2": Family("cohere2", "Cohere2ForCausalLM", _cohere2),
    "command-r": Family("cohere", "CohereForCausalLM", _cohere),
    "ernie4_5": Family("ernie4_5", "Ernie4_5ForCausalLM", _ernie),
    "exaone4": Family("exaone4", "Exaone4ForCausalLM", _exaone4, frozenset({"sliding_window"})),
    "falcon": Family("falcon", "FalconForCausalLM", _falcon),
    "gemma": Family("gemma", "GemmaForCausalLM", _gemma),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", _gemma2),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", _gemma3),
    "glm4": Family("glm4", "Glm4ForCausalLM", _glm),
    "gpt-oss": Family("gpt_oss", "GptOssForCausalLM", _gpt_oss, mixes=True),
    "gpt2": Family("gpt2", "GPT2LMHeadModel", _gpt2),
    "gptneox": Family("gpt_neox", "GPTNeoXForCausalLM", _gptneox),
    "granite": Family("granite", "GraniteForCausalLM", _granite),
    "hunyuan-dense": Family("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", _llama),
    "llama": Family("llama", "LlamaForCausalLM", _llama_or_mixtral, mixes=True),
    "mistral3": Family("ministral3", "Ministral3ForCausalLM", _mistral3, frozenset({"sliding_window"})),
    "mpt": Family("mpt", "MptForCausalLM", _mpt),
    "nemotron": Family("nemotron", "NemotronForCausalLM", _nemotron),
    "olmo": Family("olmo", "OlmoForCausalLM", _olmo),
    "olmo2": Family("olmo2", "Olmo2ForCausalLM", _olmo2),
    "olmoe": Family("olmoe", "OlmoeForCausalLM", _olmoe, mixes=True),
    "phi2": Family("phi", "PhiForCausalLM", _phi2),
    "phi3": Family("phi3", "Phi3ForCausalLM", _phi3),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", _qwen),
    "qwen2moe": Family("qwen2_moe", "Qwen2MoeForCausalLM", _qwen2moe, mixes=True),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", _qwen),
    "qwen3moe": Family("qwen3_moe", "Qwen3MoeForCausalLM", _qwen3moe, mixes=True),
    "seed_oss": Family("seed_oss", "SeedOssForCausalLM", _seed_oss),
    "smollm3": Family("smollm3", "SmolLM3ForCausalLM", _smollm3),
    "stablelm": Family("stablelm", "StableLmForCausalLM", _stablelm),
    "starcoder": Family("gpt_bigcode", "GPTBigCodeForCausalLM", _starcoder),
    "starcoder2": Family("starcoder2", "Starcoder2ForCausalLM", _starcoder2),
}
