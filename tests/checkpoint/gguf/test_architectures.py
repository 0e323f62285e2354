"""A model written as GGUF and read back is the same model, for every architecture that is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.checkpoint.gguf.cases import ARCHITECTURES, BY_NAME
from tests.checkpoint.gguf.files import Converted
from truecast.checkpoint import Checkpoint, open_checkpoint
from truecast.checkpoint.gguf.architectures import FAMILIES
from truecast.checkpoint.gguf.names import NAMINGS
from truecast.errors import InputError
from truecast.trace.conversion import as_parameters

PROMPT = torch.tensor([[1, 5, 9, 33, 7, 60, 61, 8, 2, 12, 40, 41]])
"""Longer than the windows of the cases."""


def rebuilt(checkpoint: Checkpoint) -> Any:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**checkpoint.config), dtype=torch.float32).eval()
    tensors = as_parameters(checkpoint, model).tensors
    weights = {name: torch.from_numpy(np.array(tensor.read())) for name, tensor in tensors.items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= set(model.all_tied_weights_keys)
    model.tie_weights()
    return model


@pytest.mark.parametrize("case", ARCHITECTURES, ids=lambda case: case.name)
def test_the_model_in_a_gguf_file_gives_the_logits_of_the_original(case: Converted, tmp_path: Path) -> None:
    original = case.write(tmp_path / "model.gguf")
    copy = rebuilt(open_checkpoint(tmp_path / "model.gguf"))
    with torch.no_grad():
        expected, actual = original(PROMPT).logits, copy(PROMPT).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_every_architecture_that_is_read_is_tested() -> None:
    assert FAMILIES.keys() == NAMINGS.keys() == {case.architecture for case in BY_NAME.values()}
    assert len(BY_NAME) == len(ARCHITECTURES)


@pytest.mark.parametrize("case", ARCHITECTURES, ids=lambda case: case.name)
def test_any_run_of_rows_equals_the_slice_of_the_whole(case: Converted, tmp_path: Path) -> None:
    case.write(tmp_path / "model.gguf")
    for tensor in open_checkpoint(tmp_path / "model.gguf").tensors.values():
        whole = tensor.read()
        assert (whole.shape, whole.dtype) == (tensor.shape, tensor.dtype)
        whole = whole.reshape(tensor.shape or (1,))
        for start, stop in [(0, 1), (3, 20), (7, 7), (5, 10_000)]:
            np.testing.assert_array_equal(tensor.rows(start, stop), whole[start:stop])


@pytest.mark.parametrize("case", ARCHITECTURES, ids=lambda case: case.name)
def test_a_tensor_is_called_verbatim_only_where_its_bytes_are_its_values(case: Converted, tmp_path: Path) -> None:
    case.write(tmp_path / "model.gguf")
    content = (tmp_path / "model.gguf").read_bytes()
    tensors = open_checkpoint(tmp_path / "model.gguf").tensors.values()
    for tensor in tensors:
        raw = content[tensor.location.offset : tensor.location.offset + tensor.location.length]
        assert tensor.verbatim == (raw == tensor.read().tobytes()), tensor.name
    assert any(tensor.verbatim for tensor in tensors)


def test_settings_that_only_the_file_knows_are_taken_from_it(tmp_path: Path) -> None:
    BY_NAME["mpt"].write(tmp_path / "model.gguf")
    attention = open_checkpoint(tmp_path / "model.gguf").config["attn_config"]
    assert attention == {"alibi": True, "alibi_bias_max": 4, "clip_qkv": 1.5}


def test_mpt_with_learned_positions_is_refused(tmp_path: Path) -> None:
    case = BY_NAME["mpt"]
    learned = replace(case, metadata={**case.metadata, "attention.max_alibi_bias": 0.0})
    learned.write(tmp_path / "model.gguf")
    with pytest.raises(InputError, match="learned positions"):
        open_checkpoint(tmp_path / "model.gguf")


def test_the_language_half_of_a_vision_model_is_refused(tmp_path: Path) -> None:
    case = BY_NAME["glm4"]
    sections = replace(case, metadata={**case.metadata, "rope.dimension_sections": [4, 2, 2, 0]})
    sections.write(tmp_path / "model.gguf")
    with pytest.raises(InputError, match="half of a vision model"):
        open_checkpoint(tmp_path / "model.gguf")


def test_fused_rows_that_fit_no_heads_are_refused(tmp_path: Path) -> None:
    case = BY_NAME["chatglm_fused"]
    odd = replace(case, metadata={**case.metadata, "attention.head_count_kv": 3})
    odd.write(tmp_path / "model.gguf")
    with pytest.raises(InputError, match=r"128 rows of blk\.\d\.attn_qkv\.\w+ do not fit 4 query and 3 key heads"):
        open_checkpoint(tmp_path / "model.gguf")


def test_numbers_of_blocks_that_are_not_there_are_refused(tmp_path: Path) -> None:
    case = BY_NAME["apertus"]
    lacking = replace(case, metadata={**case.metadata, "block_count": 3})
    lacking.write(tmp_path / "model.gguf", {"blk.2.ffn_norm.weight": np.ones(64, np.float32)})
    with pytest.raises(InputError, match=r"has not one xielu\.\w+ for each block"):
        open_checkpoint(tmp_path / "model.gguf")
