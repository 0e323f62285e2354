"""Types nobody has promised: latent attention, state spaces, and models with their own attention.

They are tried and the table says what happened, so that it is known, and seen to change, what works beyond the promise.
"""

from __future__ import annotations

from typing import Any

from tests.conformance.expert_cases import LOCAL_EXPERTS
from tests.conformance.shapes import EPSILON, FULL, SHAPE, SLIDING, WINDOW, rope
from tests.tiny import END_TOKEN_ID, Case

GPT: dict[str, Any] = {
    "vocab_size": 320,
    "n_positions": 128,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "layer_norm_epsilon": EPSILON,
    "bos_token_id": END_TOKEN_ID,
    "eos_token_id": END_TOKEN_ID,
}


def optional(name: str, config_class: str, settings: dict[str, Any]) -> Case:
    """A case that is reported and may fail."""
    return Case(name, config_class, settings, optional=True)


OWN_ATTENTION = [
    optional("diffllama", "DiffLlamaConfig", SHAPE),
    optional("falcon", "FalconConfig", SHAPE | {"layer_norm_epsilon": EPSILON}),
    optional("falcon_alibi", "FalconConfig", SHAPE | {"alibi": True, "layer_norm_epsilon": EPSILON}),
    optional("bloom", "BloomConfig", SHAPE | {"n_head": 4, "n_layer": 2, "layer_norm_epsilon": EPSILON}),
    optional(
        "mpt",
        "MptConfig",
        SHAPE | {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "layer_norm_epsilon": EPSILON},
    ),
    optional("gpt_bigcode", "GPTBigCodeConfig", GPT),
    optional("gptj", "GPTJConfig", GPT | {"rotary_dim": 8}),
    optional("codegen", "CodeGenConfig", GPT | {"rotary_dim": 8, "n_ctx": 128}),
    optional(
        "gpt_neo",
        "GPTNeoConfig",
        SHAPE
        | {
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            "layer_norm_epsilon": EPSILON,
        },
    ),
    optional(
        "persimmon",
        "PersimmonConfig",
        SHAPE | {"layer_norm_eps": EPSILON, "rope_parameters": rope("default", partial_rotary_factor=0.5)},
    ),
    optional(
        "xglm",
        "XGLMConfig",
        SHAPE | {"d_model": 64, "ffn_dim": 96, "num_layers": 2, "attention_heads": 4, "pad_token_id": 1},
    ),
    optional("biogpt", "BioGptConfig", SHAPE | {"layer_norm_eps": EPSILON}),
    optional("nanochat", "NanoChatConfig", SHAPE | {"final_logit_softcapping": 3.0}),
    optional("bitnet", "BitNetConfig", SHAPE),
    optional("doge", "DogeConfig", SHAPE),
    optional("ctrl", "CTRLConfig", GPT | {"dff": 96}),
    optional("ministral3", "Ministral3Config", SHAPE | {"head_dim": 16}),
    optional(
        "vaultgemma",
        "VaultGemmaConfig",
        SHAPE | {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": WINDOW, "tie_word_embeddings": True},
    ),
    optional("cwm", "CwmConfig", SHAPE | {"head_dim": 16, "sliding_window": WINDOW, "layer_types": [SLIDING, FULL]}),
]

MIXTURES = [
    optional("phimoe", "PhimoeConfig", SHAPE | LOCAL_EXPERTS),
    optional(
        "deepseek_v3",
        "DeepseekV3Config",
        SHAPE
        | {
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
        },
    ),
]

STATE_SPACES = [
    optional(
        "zamba2",
        "Zamba2Config",
        SHAPE
        | {
            "mamba_d_state": 8,
            "mamba_ngroups": 2,
            "n_mamba_heads": 8,
            "mamba_headdim": 16,
            "layers_block_type": ["mamba", "hybrid"],
            "hybrid_layer_ids": [1],
            "num_mem_blocks": 1,
            "adapter_rank": 8,
            "chunk_size": 16,
        },
    ),
    optional(
        "nemotron_h",
        "NemotronHConfig",
        SHAPE
        | {
            "layers_block_type": ["mamba", "attention"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 2,
            "chunk_size": 16,
            "head_dim": 16,
        },
    ),
    optional(
        "minimax",
        "MiniMaxConfig",
        SHAPE | LOCAL_EXPERTS | {"head_dim": 16, "block_size": 16, "layer_types": ["linear_attention", FULL]},
    ),
]

OPTIONAL: list[Case] = [*OWN_ATTENTION, *MIXTURES, *STATE_SPACES]
