"""What the configuration says of a model, under the names that architectures give it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from truecast.checkpoint import Checkpoint
from truecast.checkpoint.castable import recurs
from truecast.checkpoint.tasks import GENERATION, task_of

CACHE_BYTES = 4
"""Bytes of one float32 of the cache."""

_DECODER = re.compile(r"(ForCausalLM|LMHeadModel)$")


def architecture(checkpoint: Checkpoint) -> str:
    """The name of the model's class, or `unknown`."""
    names = checkpoint.config.get("architectures") or []
    return str(names[0]) if isinstance(names, list) and names else "unknown"


def is_decoder(checkpoint: Checkpoint) -> bool:
    """Whether it is a decoder language model."""
    return bool(_DECODER.search(architecture(checkpoint)))


def is_module(checkpoint: Checkpoint) -> bool:
    """Whether it keeps no cache: an encoder, with or without a head."""
    return task_of(checkpoint) != GENERATION


def context_length(checkpoint: Checkpoint) -> int | None:
    """Tokens that the model can attend to."""
    names = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")
    return _first(_text_config(checkpoint), *names)


def recording_length(checkpoint: Checkpoint) -> int | None:
    """Positions of the encoder for a recording, which an author pads or cuts to that length; None for others."""
    return _first(_text_config(checkpoint), "max_source_positions")


def vocabulary(checkpoint: Checkpoint) -> int | None:
    """Number of tokens."""
    return _first(_text_config(checkpoint), "vocab_size")


def layers(checkpoint: Checkpoint) -> int | None:
    """Number of layers."""
    return _first(_text_config(checkpoint), "num_hidden_layers", "n_layer", "n_layers", "num_layers")


def heads(checkpoint: Checkpoint) -> int | None:
    """Number of attention heads."""
    return _first(_text_config(checkpoint), "num_attention_heads", "n_head", "n_heads", "encoder_attention_heads")


def kv_heads(checkpoint: Checkpoint) -> int | None:
    """Number of heads that have keys and values."""
    return _first(_text_config(checkpoint), "num_key_value_heads", "num_attention_heads", "n_head", "n_heads")


def head_dim(checkpoint: Checkpoint) -> int | None:
    """Width of a head."""
    config = _text_config(checkpoint)
    stated, width, count = _first(config, "head_dim"), _first(config, "hidden_size", "n_embd"), heads(checkpoint)
    return stated or (width // count if width and count else None)


def kv_bytes_per_token(checkpoint: Checkpoint) -> int | None:
    """Bytes of float32 keys and values that one token adds: 2 · layers · kv_heads · head_dim · 4."""
    count, pairs, width = layers(checkpoint), kv_heads(checkpoint), head_dim(checkpoint)
    compressed = "kv_lora_rank" in _text_config(checkpoint)
    if not is_decoder(checkpoint) or count is None or pairs is None or width is None or compressed:
        return None
    if recurs(checkpoint):  # some layers, or all, have none
        return None
    return 2 * count * pairs * width * CACHE_BYTES


def _text_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The settings of the language model, which a model of several modalities keeps apart."""
    nested = checkpoint.config.get("text_config")
    return {**checkpoint.config, **nested} if isinstance(nested, dict) else checkpoint.config


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    """The first setting that is there."""
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)
