"""Every architecture that is read from GGUF: its configuration in transformers, and what a file states of it."""

from __future__ import annotations

from tests.checkpoint.gguf.files import BLOCKS, Converted

_RMS = {"attention.layer_norm_rms_epsilon": 1e-5}
_LAYER = {"attention.layer_norm_epsilon": 1e-5}
_HALF_ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
_GLM = {
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "head_dim": 16,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5},
}

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_COUNTS = {"expert_count": 4, "expert_used_count": 2}

ARCHITECTURES = [
    Converted(
        "apertus",
        "ApertusConfig",
        {
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 12e6},
            "tie_word_embeddings": False,
        },
        {**_RMS, "rope.freq_base": 12e6, "rope.dimension_count": 16},
    ),
    Converted("arcee", "ArceeConfig", {"rms_norm_eps": 1e-5}, _RMS, interleaved=True),
    Converted("bloom", "BloomConfig", {"n_layer": BLOCKS, "n_head": 4}, _LAYER),
    Converted("chatglm", "GlmConfig", _GLM, {**_RMS, "rope.dimension_count": 8, "rope.freq_base": 5e5}),
    Converted(
        "chatglm",
        "GlmConfig",
        _GLM,
        {**_RMS, "rope.dimension_count": 8, "rope.freq_base": 5e5},
        fused=True,
        label="chatglm_fused",
    ),
    Converted(
        "cohere2",
        "Cohere2Config",
        {"sliding_window": 5, "logit_scale": 0.5, "head_dim": 16, "num_hidden_layers": 5},
        {**_LAYER, "attention.sliding_window": 5, "logit_scale": 0.5, "rope.freq_base": 10000.0},
    ),
    Converted(
        "command-r",
        "CohereConfig",
        {"use_qk_norm": True, "logit_scale": 0.25},
        {**_LAYER, "logit_scale": 0.25, "rope.freq_base": 500000.0},
    ),
    Converted(
        "ernie4_5",
        "Ernie4_5Config",
        {
            "head_dim": 32,
            "use_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        },
        {**_RMS, "attention.key_length": 32, "rope.freq_base": 5e5},
    ),
    Converted(
        "exaone4",
        "Exaone4Config",
        {"num_hidden_layers": 3, "sliding_window": 5, "layer_types": ["full_attention", *["sliding_attention"] * 2]},
        {
            **_RMS,
            "attention.sliding_window": 5,
            "attention.sliding_window_pattern": [False, True, True],
        },
    ),
    Converted(
        "exaone4",
        "Exaone4Config",
        {"sliding_window": None, "layer_types": ["full_attention"] * BLOCKS},
        _RMS,
        label="exaone4_without_window",
    ),
    Converted("falcon", "FalconConfig", {}, {**_LAYER, "rope.freq_base": 10000.0}),
    Converted(
        "falcon",
        "FalconConfig",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
        _LAYER,
        label="falcon_two_norms",
    ),
    Converted(
        "gemma",
        "GemmaConfig",
        {"head_dim": 32},
        {"attention.layer_norm_rms_epsilon": 1e-6, "attention.key_length": 32},
        plus_one=True,
    ),
    Converted(
        "gemma2",
        "Gemma2Config",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 5, "final_logit_softcapping": 20.0},
        {
            "attention.layer_norm_rms_epsilon": 1e-6,
            "attention.key_length": 32,
            "attention.sliding_window": 5,
            "final_logit_softcapping": 20.0,
        },
        plus_one=True,
    ),
    Converted(
        "gemma3",
        "Gemma3TextConfig",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 5,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        {
            "attention.layer_norm_rms_epsilon": 1e-6,
            "attention.key_length": 32,
            "attention.sliding_window": 5,
            "rope.freq_base": 1e6,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
        plus_one=True,
    ),
    Converted("glm4", "Glm4Config", _GLM, {**_RMS, "rope.dimension_count": 8, "rope.freq_base": 5e5}),
    Converted(
        "gpt-oss",
        "GptOssConfig",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 32,
            "sliding_window": 5,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 16,
            },
        },
        {
            **_RMS,
            **_COUNTS,
            "attention.key_length": 32,
            "attention.sliding_window": 5,
            "rope.freq_base": 150000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 16,
        },
    ),
    Converted(
        "gpt2", "GPT2Config", {"n_embd": 64, "n_layer": BLOCKS, "n_head": 4, "n_positions": 64, "n_inner": 80}, _LAYER
    ),
    Converted(
        "gptneox",
        "GPTNeoXConfig",
        {**_HALF_ROTARY, "use_parallel_residual": False, "num_key_value_heads": 4},
        {**_LAYER, "rope.dimension_count": 8, "use_parallel_residual": False},
    ),
    Converted(
        "granite",
        "GraniteConfig",
        {
            "rms_norm_eps": 1e-5,
            "logits_scaling": 2.0,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
        },
        {**_RMS, "logit_scale": 2.0, "attention.scale": 0.2, "embedding_scale": 3.0, "residual_scale": 0.5},
        interleaved=True,
    ),
    Converted(
        "hunyuan-dense",
        "HunYuanDenseV1Config",
        {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 11158839.0}},
        {**_RMS, "attention.key_length": 32, "rope.freq_base": 11158839.0, "rope.scaling.type": "none"},
    ),
    Converted(
        "llama",
        "LlamaConfig",
        {
            "rms_norm_eps": 1e-5,
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        },
        {**_RMS, "rope.dimension_count": 16, "rope.freq_base": 5e5},
        interleaved=True,
    ),
    Converted(
        "llama",
        "MixtralConfig",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        {**_RMS, **_COUNTS, "rope.freq_base": 1e6},
        interleaved=True,
        label="mixtral",
    ),
    Converted(
        "mistral3",
        "Ministral3Config",
        {
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 8.0,
                "original_max_position_embeddings": 8,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.5,
            },
        },
        {
            **_RMS,
            "attention.key_length": 32,
            "rope.freq_base": 1e6,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 8,
            "rope.scaling.yarn_log_multiplier": 1.0,
            "attention.temperature_scale": 0.5,
        },
        interleaved=True,
    ),
    Converted(
        "mistral3",
        "MistralConfig",
        {"rms_norm_eps": 1e-5, "sliding_window": None, "head_dim": 32},
        {**_RMS, "attention.key_length": 32},
        interleaved=True,
        label="mistral3_small",
    ),
    Converted(
        "mpt",
        "MptConfig",
        {"d_model": 64, "n_heads": 4, "n_layers": BLOCKS, "attn_config": {"clip_qkv": 1.5, "alibi_bias_max": 4}},
        {**_LAYER, "attention.max_alibi_bias": 4.0, "attention.clamp_kqv": 1.5},
    ),
    Converted(
        "nemotron",
        "NemotronConfig",
        {"norm_eps": 1e-5, "head_dim": 16, **_HALF_ROTARY},
        {**_LAYER, "rope.dimension_count": 8},
        plus_one=True,
    ),
    Converted("olmo", "OlmoConfig", {"clip_qkv": 1.5}, {**_LAYER, "attention.clamp_kqv": 1.5}, interleaved=True),
    Converted("olmo2", "Olmo2Config", {"rms_norm_eps": 1e-5}, _RMS),
    Converted(
        "olmo2",
        "Olmo3Config",
        {
            "rms_norm_eps": 1e-5,
            "num_hidden_layers": 4,
            "sliding_window": 5,
            "layer_types": [*["sliding_attention"] * 2, "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 16,
                    "rope_theta": 5e5,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            },
        },
        {
            **_RMS,
            "attention.sliding_window": 5,
            "attention.sliding_window_pattern": [True, True, False, True],
            "rope.freq_base": 5e5,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 16,
        },
        label="olmo3",
    ),
    Converted("olmoe", "OlmoeConfig", {**_EXPERTS, "clip_qkv": 1.5}, {**_RMS, **_COUNTS, "attention.clamp_kqv": 1.5}),
    Converted("phi2", "PhiConfig", _HALF_ROTARY, {**_LAYER, "rope.dimension_count": 8}),
    Converted(
        "phi3",
        "Phi3Config",
        {"sliding_window": 5, "rms_norm_eps": 1e-5},
        {**_RMS, "rope.dimension_count": 16, "attention.sliding_window": 5},
    ),
    Converted(
        "qwen2",
        "Qwen2Config",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "rope_theta": 1e6,
            },
        },
        {
            "attention.layer_norm_rms_epsilon": 1e-6,
            "rope.freq_base": 1e6,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 16,
        },
    ),
    Converted(
        "qwen2moe",
        "Qwen2MoeConfig",
        {**_EXPERTS, "rms_norm_eps": 1e-5, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 96},
        {**_RMS, **_COUNTS, "expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 96},
    ),
    Converted("qwen3", "Qwen3Config", {"head_dim": 32, "rms_norm_eps": 1e-5}, {**_RMS, "attention.key_length": 32}),
    Converted(
        "qwen3moe",
        "Qwen3MoeConfig",
        {
            **_EXPERTS,
            "rms_norm_eps": 1e-5,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "head_dim": 32,
        },
        {**_RMS, **_COUNTS, "expert_feed_forward_length": 32, "attention.key_length": 32},
    ),
    Converted(
        "seed_oss",
        "SeedOssConfig",
        {"head_dim": 32, "attention_out_bias": True, "mlp_bias": False},
        {"attention.layer_norm_rms_epsilon": 1e-6, "attention.key_length": 32},
    ),
    Converted(
        "smollm3",
        "SmolLM3Config",
        {"rms_norm_eps": 1e-5, "no_rope_layers": ()},
        {**_RMS, "rope.freq_base": 2e6},
        interleaved=True,
    ),
    Converted(
        "stablelm",
        "StableLmConfig",
        {**_HALF_ROTARY, "use_qkv_bias": True, "use_parallel_residual": True},
        {**_LAYER, "rope.dimension_count": 8},
    ),
    Converted(
        "stablelm",
        "StableLmConfig",
        {**_HALF_ROTARY, "qk_layernorm": True},
        {**_LAYER, "rope.dimension_count": 8},
        label="stablelm_qk_layernorm",
    ),
    Converted(
        "starcoder", "GPTBigCodeConfig", {"n_embd": 64, "n_layer": BLOCKS, "n_head": 4, "n_positions": 64}, _LAYER
    ),
    Converted("starcoder2", "Starcoder2Config", {"tie_word_embeddings": False}, _LAYER),
]

BY_NAME = {case.name: case for case in ARCHITECTURES}
