"""GGUF files made in a test, from a transformers model, the way llama.cpp's converter makes them.

The names come from the gguf package's own table, and the changes of values are written out whole, so that nothing here
shares code with the reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

BLOCKS = 2
SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Converted:
    """One architecture as transformers has it (`config_class`, `settings`) and as the file states it (`metadata`)."""

    architecture: str
    config_class: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    plus_one: bool = False
    interleaved: bool = False

    def model(self) -> Any:
        """The model in float32 with weights that all matter."""
        sizes = {**SIZES, **self.settings}
        config = getattr(transformers, self.config_class)(**{key: value for key, value in sizes.items() if value != ()})
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        return model

    def write(self, path: Path, extra: Mapping[str, np.ndarray[Any, Any]] | None = None) -> Any:
        """Writes the model, and the tensors of `extra`, as `path`; the model."""
        model = self.model()
        writer = gguf.GGUFWriter(path, self.architecture)
        for key, value in {**_sizes(model.config), **self.metadata}.items():
            _add(writer, f"{self.architecture}.{key}", value)
        add_vocabulary(writer, model.config.vocab_size)
        for name, value in {**self.tensors(model), **(extra or {})}.items():
            writer.add_tensor(name, np.ascontiguousarray(value))
        close(writer)
        return model

    def tensors(self, model: Any) -> dict[str, np.ndarray[Any, Any]]:
        """The model's parameters under GGUF names, changed as the converter changes them; tied ones once."""
        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        table = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
        named = {}
        for name, parameter in model.named_parameters():
            gguf_name = table.get_name(name, try_suffixes=(".weight", ".bias"))
            assert gguf_name is not None, name
            named[gguf_name] = self._changed(gguf_name, name, parameter.detach(), model.config).numpy()
        return named

    def _changed(self, gguf_name: str, name: str, value: torch.Tensor, config: Any) -> torch.Tensor:
        if self.plus_one and name.endswith("norm.weight"):
            return value + 1
        if self.interleaved and ".attn_q." in gguf_name:
            return _interleave(value, config.num_attention_heads)
        if self.interleaved and ".attn_k." in gguf_name:
            return _interleave(value, config.num_key_value_heads)
        if self.architecture == "gpt2" and ".weight" in gguf_name and "c_" in name:
            return value.T
        if self.architecture == "gptneox" and "attn_qkv" in gguf_name:
            parts = value.reshape(config.num_attention_heads, 3, -1, *value.shape[1:])
            return torch.cat([parts[:, part].reshape(-1, *value.shape[1:]) for part in range(3)])
        return value


def _interleave(value: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's `permute`."""
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape)


def _sizes(config: Any) -> dict[str, Any]:
    kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    return {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.n_inner if config.model_type == "gpt2" else config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": kv_heads,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    adders[type(value)](key, value)


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A vocabulary of the SentencePiece kind."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<pad>", "<bos>", "<eos>", "<unk>", *(f"t{index}" for index in range(4, size))])
    writer.add_token_scores([-float(index) for index in range(size)])
    writer.add_token_types([3, 3, 3, 2, *[1] * (size - 4)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)


def close(writer: gguf.GGUFWriter) -> None:
    """Writes everything out."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_RMS = {"attention.layer_norm_rms_epsilon": 1e-5}
_LAYER = {"attention.layer_norm_epsilon": 1e-5}
_HALF_ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}

ARCHITECTURES = [
    Converted("arcee", "ArceeConfig", {"rms_norm_eps": 1e-5}, _RMS, interleaved=True),
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
    Converted(
        "gpt2", "GPT2Config", {"n_embd": 64, "n_layer": BLOCKS, "n_head": 4, "n_positions": 64, "n_inner": 80}, _LAYER
    ),
    Converted(
        "gptneox",
        "GPTNeoXConfig",
        {**_HALF_ROTARY, "use_parallel_residual": False},
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
        "nemotron",
        "NemotronConfig",
        {"norm_eps": 1e-5, "head_dim": 16, **_HALF_ROTARY},
        {**_LAYER, "rope.dimension_count": 8},
        plus_one=True,
    ),
    Converted("olmo", "OlmoConfig", {"clip_qkv": 1.5}, {**_LAYER, "attention.clamp_kqv": 1.5}, interleaved=True),
    Converted("olmo2", "Olmo2Config", {"rms_norm_eps": 1e-5}, _RMS),
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
    Converted("qwen3", "Qwen3Config", {"head_dim": 32, "rms_norm_eps": 1e-5}, {**_RMS, "attention.key_length": 32}),
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
    Converted("starcoder2", "Starcoder2Config", {"tie_word_embeddings": False}, _LAYER),
]

BY_NAME = {case.architecture: case for case in ARCHITECTURES}
