"""The shapes of the models that the benchmark builds: sizes only, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A decoder of the Qwen2 type: grouped query attention with biases, gated feed-forward, tied embeddings."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    head_dim: int

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "max_position_embeddings": CONTEXT_TOKENS,
            "rms_norm_eps": NORM_EPSILON,
            "rope_theta": ROPE_THETA,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "bos_token_id": self.vocab - 2,
            "eos_token_id": self.vocab - 1,
        }

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of a float32 cache of keys and values for `tokens` tokens of one sequence."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 4 * tokens

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """The checkpoint's tensors, by their Hugging Face names, in file order; the head is tied and not stored."""
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for index in range(self.layers):
            for name, shape in self._layer().items():
                found[f"model.layers.{index}.{name}"] = shape
        found["model.norm.weight"] = (self.hidden,)
        return found

    def _layer(self) -> dict[str, tuple[int, ...]]:
        """The tensors of one layer, by their names within it."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "input_layernorm.weight": (self.hidden,),
            "self_attn.q_proj.weight": (queries, self.hidden),
            "self_attn.q_proj.bias": (queries,),
            "self_attn.k_proj.weight": (keys, self.hidden),
            "self_attn.k_proj.bias": (keys,),
            "self_attn.v_proj.weight": (keys, self.hidden),
            "self_attn.v_proj.bias": (keys,),
            "self_attn.o_proj.weight": (self.hidden, queries),
            "post_attention_layernorm.weight": (self.hidden,),
            "mlp.gate_proj.weight": (self.intermediate, self.hidden),
            "mlp.up_proj.weight": (self.intermediate, self.hidden),
            "mlp.down_proj.weight": (self.hidden, self.intermediate),
        }


CONTEXT_TOKENS = 32768
"""Context length, in tokens, that Qwen2.5's 0.5B and 3B models state in their config.json."""
NORM_EPSILON = 1e-6
ROPE_THETA = 1_000_000.0

SHAPES = {
    "0.5b": Shape(hidden=896, layers=24, heads=14, kv_heads=2, intermediate=4864, vocab=151936, head_dim=64),
    "3b": Shape(hidden=2048, layers=36, heads=16, kv_heads=2, intermediate=11008, vocab=151936, head_dim=128),
    "tiny": Shape(hidden=128, layers=2, heads=4, kv_heads=2, intermediate=256, vocab=2048, head_dim=32),
}
"""Qwen2.5-0.5B's and Qwen2.5-3B's sizes, and one that only shows whether the benchmark itself works."""
