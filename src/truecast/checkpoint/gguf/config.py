"""GGUF metadata → the config.json that transformers expects.

Data flow: metadata and tensor names → `Facts` → the sizes every decoder has → the family's own settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truecast.checkpoint.gguf.architectures import FAMILIES
from truecast.checkpoint.gguf.metadata import Facts
from truecast.checkpoint.gguf.rope import DEFAULT_ROPE_THETA, rope_parameters
from truecast.errors import InputError


def hugging_face_config(facts: Facts) -> dict[str, Any]:
    """The content of config.json for the model that `facts` describe.

    Raises:
        InputError: the metadata lacks a size, or describes a variant that is not supported.
    """
    family = FAMILIES[facts.architecture]
    if facts.experts and not family.mixes:
        raise InputError(
            f"{facts.container.path} is a mixture of experts of the architecture {facts.architecture}, which this "
            "version does not read from GGUF; convert the original Hugging Face folder instead."
        )
    if facts.get("attention.causal") is False:
        raise InputError(
            f"{facts.container.path} attends to both sides, as models of embeddings do; so far GGUF files are read for "
            "text generation only."
        )
    identity = {"model_type": family.model_type, "architectures": [family.class_name], "dtype": "float32"}
    config = {**identity, **_common(facts), **family.details(facts)}
    _check_rotation(facts, config)
    return {key: value for key, value in config.items() if value is not None or key in family.nullable}


def _check_rotation(facts: Facts, config: Mapping[str, Any]) -> None:
    """Refuses rotary positions that the file states and the transformers model has not."""
    rope, windows = config.get("rope_parameters"), "sliding_attention" in (config.get("layer_types") or ())
    theta = facts.number("rope.freq_base", DEFAULT_ROPE_THETA)
    odd = None
    if rope and facts.rotary_fraction != 1 and "partial_rotary_factor" not in rope:
        odd = f"{facts.get('rope.dimension_count')} of the {facts.head_dim} channels of a head"
    elif rope and windows and facts.number("rope.freq_base_swa", theta) != theta and "sliding_attention" not in rope:
        odd = "layers with a window by a base of their own"
    if odd is not None:
        raise InputError(
            f"{facts.container.path} rotates {odd}, which transformers' {config['model_type']} does not; "
            "convert the original Hugging Face folder instead."
        )


def _common(facts: Facts) -> dict[str, Any]:
    return {
        "vocab_size": facts.rows,
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
