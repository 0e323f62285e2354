"""Gemma 3 270M as it is published in GGUF (Q4_K_M)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from tokenizers import Tokenizer
from transformers import Gemma3TextConfig

from truecast.checkpoint import Checkpoint, open_checkpoint
from truecast.checkpoint.encoding import decode

VARIABLE = "TRUECAST_GEMMA_GGUF"
pytestmark = pytest.mark.skipif(
    not os.environ.get(VARIABLE), reason=f"needs the real model: set {VARIABLE} to the path of its GGUF file"
)


@pytest.fixture(scope="module")
def gemma() -> Checkpoint:
    return open_checkpoint(os.environ[VARIABLE])


@pytest.fixture(scope="module")
def tokenizer(gemma: Checkpoint) -> Tokenizer:
    return Tokenizer.from_buffer(gemma.side_files["tokenizer.json"]())


def test_its_configuration_is_that_of_the_original(gemma: Checkpoint) -> None:
    original = Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=32768,
        sliding_window=512,
        architectures=["Gemma3ForCausalLM"],
        dtype="float32",
    )
    assert Gemma3TextConfig(**gemma.config).to_dict() == original.to_dict()


def test_it_opens_in_well_under_three_seconds_without_torch() -> None:
    code = (
        "import sys, time; start = time.process_time(); from truecast.checkpoint import open_checkpoint; "
        f"open_checkpoint({os.environ[VARIABLE]!r}); print(time.process_time() - start); "
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 3


def test_all_its_files_are_made_in_under_five_seconds(gemma: Checkpoint) -> None:
    start = time.process_time()
    files = {name: make() for name, make in gemma.side_files.items()}
    assert time.process_time() - start < 5
    assert files.keys() == {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


def test_a_prompt_becomes_the_known_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("The capital of France is").ids == [2, 818, 5279, 529, 7001, 563]


@pytest.mark.parametrize(
    "text",
    [
        "  two spaces   three",
        "def f(x):\n    return x  # é\n\n\n",
        "Ünïcödé 你好 🙂 \u200b x",
        "\t\ttab\r\n",
        "<table><tr> hi",
        "1234567 3.14",
    ],
)
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_its_files_are_valid(gemma: Checkpoint) -> None:
    assert json.loads(gemma.side_files["tokenizer_config.json"]())["bos_token"] == "<bos>"
    assert json.loads(gemma.side_files["generation_config.json"]()) == {
        "bos_token_id": 2,
        "eos_token_id": [1, 106],
        "pad_token_id": 0,
    }


SAMPLES = pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.embed_tokens.weight", "Q8_0"),
        ("model.layers.3.self_attn.q_proj.weight", "Q5_0"),
        ("model.layers.0.self_attn.o_proj.weight", "Q4_K"),
        ("model.layers.17.mlp.down_proj.weight", "Q6_K"),
    ],
)


@SAMPLES
def test_rows_equal_those_of_the_gguf_library(gemma: Checkpoint, name: str, kind: str) -> None:
    tensor = gemma.tensors[name]
    assert tensor.stored_as == kind
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    raw = np.memmap(Path(gemma.path), np.uint8, "r", tensor.location.offset, tensor.location.length)
    rows = raw.reshape(tensor.shape[0], tensor.shape[1] // block * block_bytes)[100:164]
    np.testing.assert_array_equal(tensor.rows(100, 164), dequantize(rows, gguf.GGMLQuantizationType[kind]))


@SAMPLES
def test_encoded_rows_are_bit_for_bit_those_of_the_gguf_library(gemma: Checkpoint, name: str, kind: str) -> None:
    tensor = gemma.tensors[name]
    assert tensor.encoding is not None
    values = decode(tensor.encoding, tensor.shape[1], 100, 164)
    np.testing.assert_array_equal(values.view(np.uint32), tensor.rows(100, 164).view(np.uint32), err_msg=kind)


def test_every_matrix_has_an_encoding(gemma: Checkpoint) -> None:
    matrices = [tensor for tensor in gemma.tensors.values() if len(tensor.shape) == 2]
    assert len(matrices) == 127
    assert all(tensor.encoding is not None for tensor in matrices)
    assert gemma.notices == ()
