"""Rotary frequencies that a GGUF file keeps as tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.checkpoint.gguf.cases import BY_NAME
from tests.checkpoint.gguf.files import Converted
from truecast.checkpoint import open_checkpoint
from truecast.errors import InputError

THETA = 500_000.0
HEAD_DIM = 64
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": THETA,
}


def inverse_frequencies(config: Any) -> torch.Tensor:
    kind = config.rope_parameters["rope_type"]
    return ROPE_INIT_FUNCTIONS[kind](config, device="cpu", seq_len=16)[0]


def factors(rope: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What the converter stores: how much each frequency is divided by."""
    config = LlamaConfig(head_dim=HEAD_DIM, rope_parameters=rope)
    plain = 1.0 / THETA ** (torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    return (plain / inverse_frequencies(config)).numpy().astype(np.float32)


def llama_config(path: Path, frequencies: np.ndarray[Any, Any]) -> dict[str, Any]:
    case = Converted(
        "llama",
        "LlamaConfig",
        {"head_dim": HEAD_DIM},
        {"attention.layer_norm_rms_epsilon": 1e-5, "attention.key_length": HEAD_DIM, "rope.freq_base": THETA},
        interleaved=True,
    )
    case.write(path, {"rope_freqs.weight": frequencies})
    return dict(open_checkpoint(path).config)


def test_the_frequency_factors_of_llama3_become_its_settings(tmp_path: Path) -> None:
    config = llama_config(tmp_path / "model.gguf", factors(LLAMA3))
    assert config["rope_parameters"] == LLAMA3


def test_other_frequency_factors_are_kept_as_they_are(tmp_path: Path) -> None:
    odd = np.linspace(1, 5, HEAD_DIM // 2, dtype=np.float32)
    config = AutoConfig.for_model(**llama_config(tmp_path / "model.gguf", odd))
    plain = 1.0 / THETA ** (torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    torch.testing.assert_close(inverse_frequencies(config), plain / torch.from_numpy(odd))
    assert ROPE_INIT_FUNCTIONS["longrope"](config, device="cpu", seq_len=16)[1] == 1.0


def test_long_and_short_factors_of_phi3_are_settings_not_parameters(tmp_path: Path) -> None:
    short, long = np.full(8, 1.5, np.float32), np.full(8, 4.0, np.float32)
    case = Converted(
        "phi3",
        "Phi3Config",
        {},
        {
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": 16,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": 1.25,
        },
    )
    case.write(tmp_path / "model.gguf", {"rope_factors_short.weight": short, "rope_factors_long.weight": long})
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    config = AutoConfig.for_model(**checkpoint.config)
    assert config.rope_parameters["short_factor"] == short.tolist()
    assert config.rope_parameters["long_factor"] == long.tolist()
    assert config.rope_parameters["original_max_position_embeddings"] == 32
    assert config.rope_parameters["attention_factor"] == 1.25
    assert not any("rope" in name for name in checkpoint.tensors)


def test_an_unknown_rotary_scaling_is_refused(tmp_path: Path) -> None:
    case = BY_NAME["qwen3"]
    metadata = {**case.metadata, "rope.scaling.type": "spiral"}
    Converted("qwen3", "Qwen3Config", case.settings, metadata).write(tmp_path / "model.gguf")
    with pytest.raises(InputError, match="spiral"):
        open_checkpoint(tmp_path / "model.gguf")


def test_the_attention_factor_of_yarn_is_kept(tmp_path: Path) -> None:
    case = BY_NAME["qwen2"]
    metadata = {**case.metadata, "rope.scaling.attn_factor": 0.5}
    Converted("qwen2", "Qwen2Config", case.settings, metadata).write(tmp_path / "model.gguf")
    config = AutoConfig.for_model(**open_checkpoint(tmp_path / "model.gguf").config)
    plain = ROPE_INIT_FUNCTIONS["yarn"](case.model().config, device="cpu", seq_len=16)[1]
    assert ROPE_INIT_FUNCTIONS["yarn"](config, device="cpu", seq_len=16)[1] == pytest.approx(0.5 * plain)


def rope_of(path: Path, **metadata: Any) -> dict[str, Any]:
    """The rotary settings of a Qwen 3 file that states what `metadata` do, `_` standing for the point in keys."""
    case = BY_NAME["qwen3"]
    stated = {key: value for key, value in case.metadata.items() if not key.startswith("rope.scal")}
    stated |= {key.replace("__", "."): value for key, value in metadata.items()}
    Converted("qwen3", "Qwen3Config", case.settings, stated).write(path)
    rope: dict[str, Any] = dict(open_checkpoint(path).config["rope_parameters"])
    del rope["rope_theta"]
    return rope


LINEAR = {"rope_type": "linear", "factor": 4.0}
PLAIN = {"rope_type": "default"}


@pytest.mark.parametrize(
    ("metadata", "rope"),
    [
        ({"rope__scaling__factor": 4.0}, LINEAR),
        ({"rope__scale_linear": 4.0}, LINEAR),
        ({"rope__scaling__type": "linear", "rope__scale_linear": 4.0}, LINEAR),
        ({"rope__scaling__factor": 4.0, "rope__scale_linear": 2.0}, LINEAR),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, PLAIN),
        ({"rope__scaling__type": "linear"}, PLAIN),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 0.0}, PLAIN),
        ({"rope__scaling__factor": 1.0}, PLAIN),
        ({}, PLAIN),
        (
            {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
        (
            {"rope__scaling__type": "yarn"},
            {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 64},
        ),
    ],
)
def test_what_a_file_leaves_out_is_as_llama_cpp_has_it(
    metadata: dict[str, Any], rope: dict[str, Any], tmp_path: Path
) -> None:
    assert rope_of(tmp_path / "model.gguf", **metadata) == rope


def test_an_attention_factor_beside_linear_scaling_is_kept(tmp_path: Path) -> None:
    rope = rope_of(tmp_path / "model.gguf", rope__scaling__factor=4.0, rope__scaling__attn_factor=0.5)
    config = AutoConfig.for_model(**open_checkpoint(tmp_path / "model.gguf").config)
    frequencies, attention = ROPE_INIT_FUNCTIONS["longrope"](config, device="cpu", seq_len=16)
    plain = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, config.head_dim, 2) / config.head_dim)
    assert (rope["rope_type"], attention) == ("longrope", 0.5)
    torch.testing.assert_close(frequencies, plain / 4)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"rope__scaling__factor": -2.0}, "-2.0 as the factor"),
        ({"rope__dimension_count": 8}, "rotates 8 of the"),
        ({"rope__scaling__type": "yarn", "rope__scaling__yarn_ext_factor": 0.5}, "together with ext"),
        ({"attention__causal": False}, "both sides"),
    ],
)
def test_what_transformers_cannot_do_is_refused(metadata: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        rope_of(tmp_path / "model.gguf", **metadata)
