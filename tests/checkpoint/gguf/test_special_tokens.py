"""Which tokens end a text, and ids that the vocabulary does not have, as llama.cpp's vocabulary loader has them."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest

from tests.checkpoint.gguf.cases import BY_NAME
from tests.checkpoint.gguf.test_tokenizer import ROWS, rebuilt, write
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.gguf.special_tokens import CONTROL, end_ids
from truecast.checkpoint.gguf.tokenizer import tokenizer_files

EOS = {"tokenizer.ggml.eos_token_id": 2}
COMMON = ["<unk>", "<s>", "<end>"]


@pytest.mark.parametrize(
    ("tokens", "ends"),
    [
        (["<end_of_turn>"], [2, 3]),
        (["a", "<|im_end|>", "<|endoftext|>"], [2, 4, 5]),
        (["<|eot_id|>", "<|eom_id|>"], [2, 3, 4]),
        (["<|end|>"], [2, 3]),
        (["<|end|>", "<|return|>", "<|call|>"], [2, 4, 5]),
        (["</s>"], [2, 3]),
        (["</s>", "<|tool_response>"], [2, 4]),
        (["<|file_sep|>", "<|fim_pad|>", "[PAD]", "<|fim_prefix|>"], [2, 3, 4]),
        (["a", "b"], [2]),
    ],
)
def test_a_text_ends_at_the_spellings_that_llama_cpp_knows(tokens: list[str], ends: list[int]) -> None:
    assert end_ids(EOS, [*COMMON, *tokens], [CONTROL] * 9, 100) == ends


def test_html_that_is_spelled_like_an_end_is_text() -> None:
    assert end_ids(EOS, [*COMMON, "<s>", "</s>", "<end_of_turn>"], [1] * 6, 100) == [2, 5]


def test_what_the_metadata_name_ends_a_text_whatever_its_spelling() -> None:
    metadata = {**EOS, "tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 4}
    metadata |= {"tokenizer.ggml.fim_rep_token_id": 3}
    assert end_ids(metadata, [*COMMON, "a", "b", "c"], [1] * 6, 100) == [2, 3, 4, 5]


def test_a_vocabulary_without_a_named_end_has_the_spelled_ones() -> None:
    assert end_ids({}, ["<|im_end|>", "a"], [1, 1], 2) == [0]
    assert end_ids({}, ["<|im_end|>", "a", "<eos>"], [1] * 3, 2) == [0], "a token without a row"


def test_a_token_that_ends_a_text_is_special_though_the_file_calls_it_normal(tmp_path: Path) -> None:
    def fields(writer: gguf.GGUFWriter) -> None:
        writer.add_token_list([*COMMON, "<|eot_id|>", "\u2581", "a"])
        writer.add_token_scores([0.0] * 6)
        writer.add_token_types([2, 3, 3, 1, 1, 1])

    container = write(tmp_path / "t.gguf", "llama", fields)
    tokenizer = rebuilt(container)
    assert 3 in tokenizer.encode("a<|eot_id|>").ids
    assert "eot_id" not in tokenizer.decode([5, 3])
    assert json.loads(tokenizer_files(container, 64, ROWS)["generation_config.json"]()) == {"eos_token_id": 3}


@pytest.mark.parametrize("name", ["bos", "eos", "eot", "padding"])
def test_ids_outside_the_vocabulary_are_left_out_with_a_notice(name: str, tmp_path: Path) -> None:
    BY_NAME["qwen3"].write(tmp_path / "model.gguf", numbers={f"tokenizer.ggml.{name}_token_id": 97})
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    files = {file: make().decode() for file, make in checkpoint.side_files.items()}
    assert [f"The metadata name 97 as the token {name}" in notice for notice in checkpoint.notices] == [True]
    ids = {**dict(checkpoint.config), **json.loads(files["generation_config.json"])}
    assert 97 not in {ids.get(f"{role}_token_id") for role in ("bos", "eos", "pad")}
    assert ids.get("eos_token_id") == 2, "<eos> ends a text by its spelling" if name == "eos" else ""
