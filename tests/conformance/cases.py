"""The cases every release must prove: a tiny checkpoint for each decoder type and each hazard of size, rope, storage.

Widths are chosen to be awkward on purpose: the intermediate size and several hidden sizes are not multiples of a
quantization block, vocabularies are odd, and head counts and head dims go from the smallest published ones to the
largest. A sequence of 64 tokens crosses every window and every rope threshold.
"""

from __future__ import annotations

from typing import Any

from tests.conformance.expert_cases import EXPERT_CASES
from tests.conformance.optional_cases import OPTIONAL
from tests.conformance.recurrent_cases import RECURRENT_CASES
from tests.conformance.shapes import (
    DEFAULT_ROPE,
    EPSILON,
    FULL,
    ROPES,
    SHAPE,
    SLIDING,
    WHOLE_ROPE,
    WIDE_WINDOW,
    WINDOW,
    rope,
)
from tests.tiny import END_TOKEN_ID, Case

GPT2: dict[str, Any] = {
    "vocab_size": 320,
    "n_positions": 128,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "layer_norm_epsilon": EPSILON,
    "bos_token_id": END_TOKEN_ID,
    "eos_token_id": END_TOKEN_ID,
}


def llama(name: str, stored: str = "float32", shards: int = 1, **settings: Any) -> Case:
    """A Llama of the shared shape with some settings changed."""
    return Case(name, "LlamaConfig", SHAPE | settings, stored=stored, shards=shards)


ROPE_CASES = [
    Case(f"llama_rope_{kind}", "LlamaConfig", SHAPE | parameters, {"rope": {"rope_parameters": DEFAULT_ROPE}})
    for kind, parameters in ROPES.items()
]

SHAPE_CASES = [
    llama("llama"),
    llama("llama_tied", tie_word_embeddings=True),
    Case(
        "llama_biases",
        "LlamaConfig",
        SHAPE | {"attention_bias": True, "mlp_bias": True},
    ),
    llama("llama_head_dim_8", hidden_size=72, num_attention_heads=6, num_key_value_heads=3, head_dim=8, vocab_size=300),
    llama("llama_head_dim_24", hidden_size=88, num_key_value_heads=1, head_dim=24, intermediate_size=100),
    llama("llama_head_dim_64", "float16", hidden_size=96, num_key_value_heads=4, head_dim=64, vocab_size=257),
    llama("llama_head_dim_80", hidden_size=80, num_attention_heads=5, num_key_value_heads=1, head_dim=80),
    llama("llama_head_dim_96", "bfloat16", hidden_size=192, num_attention_heads=2, num_key_value_heads=1, head_dim=96),
    llama("llama_head_dim_128", num_attention_heads=2, num_key_value_heads=2, head_dim=128, tie_word_embeddings=True),
    llama("llama_head_dim_256", num_attention_heads=2, num_key_value_heads=1, head_dim=256),
    llama("llama_sharded", "bfloat16", 3, tie_word_embeddings=True),
]

TYPE_CASES = [
    Case("mistral", "MistralConfig", SHAPE | {"sliding_window": WINDOW}, {"window": WIDE_WINDOW}),
    Case("mistral_no_window", "MistralConfig", SHAPE | {"sliding_window": None, "head_dim": 32}),
    Case(
        "ministral",
        "MinistralConfig",
        SHAPE | {"head_dim": 16, "sliding_window": WINDOW, "layer_types": [SLIDING, FULL]},
        {"window": WIDE_WINDOW},
    ),
    Case("qwen2", "Qwen2Config", SHAPE | {"tie_word_embeddings": True}),
    Case(
        "qwen2_14_heads_odd_vocabulary",
        "Qwen2Config",
        SHAPE | {"hidden_size": 224, "num_attention_heads": 14, "vocab_size": 331},
        stored="bfloat16",
    ),
    Case(
        "qwen2_window",
        "Qwen2Config",
        SHAPE | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        {"window": WIDE_WINDOW},
    ),
    Case("qwen3", "Qwen3Config", SHAPE | {"head_dim": 32, "tie_word_embeddings": True}),
    Case("gemma", "GemmaConfig", SHAPE | {"head_dim": 32, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    Case(
        "gemma2",
        "Gemma2Config",
        SHAPE
        | {
            "head_dim": 32,
            "query_pre_attn_scalar": 24,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": True,
        },
        {
            "window": WIDE_WINDOW,
            "attention soft cap": {"attn_logit_softcapping": None},
            "logit soft cap": {"final_logit_softcapping": None},
            "scale": {"query_pre_attn_scalar": 32},
        },
    ),
    Case(
        "gemma3_text",
        "Gemma3TextConfig",
        SHAPE
        | {
            "num_hidden_layers": 3,
            "head_dim": 32,
            "query_pre_attn_scalar": 24,
            "sliding_window": WINDOW,
            "layer_types": [SLIDING, FULL, SLIDING],
            "rope_parameters": {FULL: rope("linear", 1e6, factor=4.0), SLIDING: rope("default")},
            "tie_word_embeddings": True,
        },
        {
            "window": WIDE_WINDOW,
            "rope of the full layers": {"rope_parameters": {FULL: DEFAULT_ROPE, SLIDING: DEFAULT_ROPE}},
        },
    ),
    Case(
        "phi",
        "PhiConfig",
        SHAPE | {"layer_norm_eps": EPSILON, "rope_parameters": rope("default", partial_rotary_factor=0.5)},
        {"partial rotary": {"rope_parameters": WHOLE_ROPE}},
    ),
    Case(
        "phi_qk_layernorm",
        "PhiConfig",
        SHAPE
        | {
            "layer_norm_eps": EPSILON,
            "qk_layernorm": True,
            "rope_parameters": rope("default", partial_rotary_factor=0.5),
        },
        {"norm of queries and keys": {"qk_layernorm": False}},
    ),
    Case("phi3", "Phi3Config", SHAPE | {"sliding_window": WINDOW}, {"window": WIDE_WINDOW}),
    Case(
        "phi3_longrope",
        "Phi3Config",
        SHAPE
        | {
            "original_max_position_embeddings": 48,
            "rope_parameters": rope(
                "longrope",
                original_max_position_embeddings=48,
                short_factor=[1.0, 1.1, 1.3, 1.5, 1.7, 1.9],
                long_factor=[1.2, 2.0, 4.0, 6.0, 9.0, 12.0],
                partial_rotary_factor=0.75,
            ),
        },
        {
            "long factors": {
                "rope_parameters": rope(
                    "longrope",
                    original_max_position_embeddings=48,
                    short_factor=[1.0, 1.1, 1.3, 1.5, 1.7, 1.9],
                    long_factor=[1.0, 1.1, 1.3, 1.5, 1.7, 1.9],
                    partial_rotary_factor=0.75,
                )
            }
        },
    ),
    Case(
        "smollm3",
        "SmolLM3Config",
        SHAPE | {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1], "tie_word_embeddings": True},
        {"layer without rope": {"no_rope_layers": [1, 1, 1]}},
    ),
    Case("olmo", "OlmoConfig", SHAPE | {"clip_qkv": 1.5}, {"clip": {"clip_qkv": None}}),
    Case("olmo2", "Olmo2Config", SHAPE, embedding_std=1.0),
    Case(
        "olmo3",
        "Olmo3Config",
        SHAPE
        | {
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "rope_parameters": {
                FULL: rope("yarn", factor=4.0, original_max_position_embeddings=32),
                SLIDING: rope("default"),
            },
        },
        {
            "window": WIDE_WINDOW,
            "rope of the full layers": {"rope_parameters": {FULL: DEFAULT_ROPE, SLIDING: DEFAULT_ROPE}},
        },
        embedding_std=1.0,
    ),
    Case(
        "granite",
        "GraniteConfig",
        SHAPE
        | {
            "attention_multiplier": 0.4,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "tie_word_embeddings": True,
        },
        {
            "attention multiplier": {"attention_multiplier": 0.25},
            "embedding multiplier": {"embedding_multiplier": 1.0},
            "residual multiplier": {"residual_multiplier": 1.0},
            "logits scaling": {"logits_scaling": 1.0},
        },
    ),
    Case(
        "cohere",
        "CohereConfig",
        SHAPE | {"layer_norm_eps": EPSILON, "logit_scale": 0.5, "tie_word_embeddings": True},
        {"logit scale": {"logit_scale": 1.0}},
    ),
    Case(
        "cohere_qk_norm",
        "CohereConfig",
        SHAPE | {"layer_norm_eps": EPSILON, "use_qk_norm": True, "logit_scale": 0.5, "tie_word_embeddings": True},
        {"norm of queries and keys": {"use_qk_norm": False}},
    ),
    Case(
        "cohere2",
        "Cohere2Config",
        SHAPE
        | {
            "layer_norm_eps": EPSILON,
            "logit_scale": 0.5,
            "sliding_window": WINDOW,
            "layer_types": [SLIDING, FULL],
            "tie_word_embeddings": True,
        },
        {"window": WIDE_WINDOW},
    ),
    Case(
        "stablelm",
        "StableLmConfig",
        SHAPE
        | {
            "layer_norm_eps": EPSILON,
            "use_qkv_bias": True,
            "rope_parameters": rope("default", partial_rotary_factor=0.25),
        },
        {"partial rotary": {"rope_parameters": WHOLE_ROPE}},
    ),
    Case(
        "stablelm_parallel_qk_layernorm",
        "StableLmConfig",
        SHAPE | {"layer_norm_eps": EPSILON, "qk_layernorm": True, "use_parallel_residual": True},
        {"norm of queries and keys": {"qk_layernorm": False}, "parallel": {"use_parallel_residual": False}},
    ),
    Case(
        "starcoder2",
        "Starcoder2Config",
        SHAPE | {"norm_epsilon": EPSILON, "sliding_window": WINDOW, "tie_word_embeddings": True},
        {"window": WIDE_WINDOW},
    ),
    Case("gpt2", "GPT2Config", GPT2),
    Case(
        "gpt2_as_first_published",
        "GPT2Config",
        GPT2,
        removed_prefix="transformer.",
        unused_tensors={f"h.{layer}.attn.bias": (1, 1, 128, 128) for layer in range(2)},
    ),
    Case(
        "gpt2_scale_by_layer",
        "GPT2Config",
        GPT2 | {"n_inner": 100, "vocab_size": 257, "scale_attn_by_inverse_layer_idx": True},
        {"scale": {"scale_attn_by_inverse_layer_idx": False}},
    ),
    Case(
        "gpt_neox",
        "GPTNeoXConfig",
        SHAPE | {"layer_norm_eps": EPSILON, "rope_parameters": rope("default", partial_rotary_factor=0.25)},
        {"partial rotary": {"rope_parameters": WHOLE_ROPE}, "parallel": {"use_parallel_residual": False}},
    ),
    Case("opt", "OPTConfig", SHAPE | {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    Case(
        "opt_projected_post_norm",
        "OPTConfig",
        SHAPE | {"ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
        embedding_std=0.5,
    ),
    Case(
        "glm",
        "GlmConfig",
        SHAPE | {"head_dim": 32, "rope_parameters": rope("default", partial_rotary_factor=0.5)},
        {"partial rotary": {"rope_parameters": WHOLE_ROPE}},
    ),
    Case(
        "glm4",
        "Glm4Config",
        SHAPE | {"head_dim": 16, "rope_parameters": rope("default", partial_rotary_factor=0.5)},
        {"partial rotary": {"rope_parameters": WHOLE_ROPE}},
    ),
    Case(
        "nemotron",
        "NemotronConfig",
        SHAPE | {"norm_eps": EPSILON, "rope_parameters": rope("default", partial_rotary_factor=0.5)},
        {"partial rotary": {"rope_parameters": WHOLE_ROPE}},
    ),
    Case("helium", "HeliumConfig", SHAPE | {"head_dim": 16}),
    Case(
        "exaone4",
        "Exaone4Config",
        SHAPE | {"num_hidden_layers": 3, "sliding_window": WINDOW, "layer_types": [SLIDING, FULL, SLIDING]},
        {"window": WIDE_WINDOW, "layers without rope": {"sliding_window": None, "layer_types": [FULL] * 3}},
        embedding_std=1.0,
    ),
    Case("seed_oss", "SeedOssConfig", SHAPE | {"head_dim": 32}),
    Case("hunyuan_v1_dense", "HunYuanDenseV1Config", SHAPE | {"head_dim": 16}),
    Case("ernie4_5", "Ernie4_5Config", SHAPE | {"head_dim": 16, "tie_word_embeddings": True}),
    Case("arcee", "ArceeConfig", SHAPE),
    Case(
        "apertus",
        "ApertusConfig",
        SHAPE | ROPES["llama3"],
        {"rope": {"rope_parameters": DEFAULT_ROPE}},
    ),
]

REQUIRED: list[Case] = [*SHAPE_CASES, *ROPE_CASES, *TYPE_CASES, *EXPERT_CASES, *RECURRENT_CASES]
CASES: list[Case] = [*REQUIRED, *OPTIONAL]
REPRESENTATIVE = (
    *("llama_tied", "llama_head_dim_24", "llama_rope_dynamic", "llama_rope_yarn", "mistral", "qwen2", "gemma2"),
    *("gemma3_text", "phi", "phi3_longrope", "smollm3", "olmo", "granite", "cohere", "gpt2_as_first_published", "opt"),
    *("nemotron", "qwen3_moe", "gpt_oss", "mamba", "mamba2"),
)
"""One of each mechanism: tied and untied heads, odd head sizes, kinds of rotary scaling, windows, soft caps, biases,
norms of every kind, layers without rotary, learned positions, transposed products, experts, sinks, recurrent states."""
BY_NAME: dict[str, Case] = {case.name: case for case in CASES}
