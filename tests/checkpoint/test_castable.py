"""What cannot be cast is refused before any work, by the same words in inspection and in export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from truecast.checkpoint.castable import obstacle, require_castable
from truecast.checkpoint.memory import memory_checkpoint
from truecast.checkpoint.model import Checkpoint
from truecast.checkpoint.tasks import GENERATION
from truecast.errors import InputError

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 32,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4},
    "dtype": "bfloat16",
}


def checkpoint(config: dict[str, Any], *names: str) -> Checkpoint:
    arrays = {name: np.zeros((32, 8), np.float32) for name in ("model.embed_tokens.weight", *names)}
    return memory_checkpoint(Path("checkpoint"), arrays, config, {})


def test_a_model_that_can_be_cast_has_no_obstacle() -> None:
    assert obstacle(checkpoint(LLAMA), GENERATION) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": -64}, "hidden_size is -64, which is no whole number above zero"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000, for which its tensors are too few or too small"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, for which"),
        ({"hidden_act": "blorp"}, "hidden_act is 'blorp', which transformers does not know"),
        ({"dtype": "float99"}, "dtype is 'float99'"),
        ({"rope_parameters": {"rope_type": "warp"}}, "rope_type is 'warp'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "rope_theta is 'x'"),
        ({"text_config": []}, "text_config is [], which is no object"),
        ({"model_type": "no_such"}, "'no_such' is unknown to this version of transformers"),
    ],
)
def test_settings_that_no_model_can_have_are_named(changes: dict[str, Any], said: str) -> None:
    found = obstacle(checkpoint(LLAMA | changes), GENERATION)
    assert found is not None and said in found
    with pytest.raises(InputError, match=r"^checkpoint cannot be cast for text-generation: .*; \w.*\.$"):
        require_castable(checkpoint(LLAMA | changes), GENERATION)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("gemma3", "pictures or sound"),
        ("llava", "pictures or sound"),
        ("t5", "encoder-decoders cannot be cast yet"),
        ("whisper", "encoder-decoders cannot be cast yet"),
        ("qwen3_next", "convolution or recurrent states"),
        ("deepseek_v32", "an index of their keys"),
        ("llama4_text", "complex numbers"),
        ("minimax", "a cache of its own kind"),
        ("openai-gpt", "no keys and values"),
        ("vit", "no language model of type 'vit'"),
    ],
)
def test_the_mechanism_that_is_missing_is_named(kind: str, said: str) -> None:
    found = obstacle(checkpoint({"model_type": kind}), GENERATION)
    assert found is not None and said in found


def test_a_decoder_that_attends_to_an_encoder_is_known_by_its_weights() -> None:
    given = checkpoint({"model_type": "trocr"}, "model.decoder.layers.0.encoder_attn.k_proj.weight")
    assert "(model.decoder.layers.0.encoder_attn.k_proj.weight)" in (obstacle(given, GENERATION) or "")


def test_parts_that_see_are_known_by_the_configuration() -> None:
    given = checkpoint(LLAMA | {"vision_config": {"hidden_size": 8}})
    assert "pictures or sound" in (obstacle(given, GENERATION) or "")


def test_layers_of_attention_alone_need_no_other_state() -> None:
    given = checkpoint({"model_type": "lfm2", "layer_types": ["full_attention"] * 2})
    assert obstacle(given, GENERATION) is None


@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba", "mamba2", "jamba", "bamba", "lfm2"])
def test_states_of_scans_and_convolutions_can_be_carried(kind: str) -> None:
    assert obstacle(checkpoint({"model_type": kind}), GENERATION) is None


def test_what_is_no_decoder_needs_no_mechanism_of_decoders() -> None:
    assert obstacle(checkpoint({"model_type": "t5"}), "feature-extraction") is None


def test_what_sees_may_come_without_the_part_that_reads() -> None:
    clip = {"model_type": "clip", "text_config": {"vocab_size": 49408}, "vision_config": {"hidden_size": 8}}
    assert obstacle(checkpoint(clip), "image-classification") is None


def test_no_tensors_are_an_obstacle() -> None:
    assert "no tensors" in (obstacle(memory_checkpoint(Path("it"), {}, LLAMA, {}), GENERATION) or "")
