"""Texts as an encoder's graph takes them: prompts, cases, sides and lengths as the artifact's files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.runtime.tokenizer_files import write_tokenizer
from truecast.artifact import Certificate, GraphInfo, Manifest, Source, Status, TensorInfo
from truecast.errors import InputError
from truecast.runtime.encoder import Tokens

WORDS = ["[PAD]", "[CLS]", "[SEP]", "ask", ":", "is", "it", "good", "Good"]
ID = {word: index for index, word in enumerate(WORDS)}


def words() -> Tokenizer:
    """A tokenizer of whole words, with marks around a text and between two."""
    tokenizer = Tokenizer(models.WordLevel(ID, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(name, ID[name]) for name in ("[CLS]", "[SEP]")]
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=marks)
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    return tokenizer


def artifact(folder: Path, length: str = "1..80", files: dict[str, Any] | None = None, **config: Any) -> Path:
    """A folder with a tokenizer and a manifest; no graph."""
    write_tokenizer(folder, words(), pad_token="[PAD]", **config)
    names = ("input_ids", "attention_mask", "token_type_ids", "prompt_length")
    shape: list[str | int] = ["batch_size", "sequence_length"]
    inputs = [TensorInfo(name=name, dtype="int64", shape=shape if name != names[-1] else shape[:1]) for name in names]
    graph = GraphInfo(
        opsets={"": 21}, ir_version=10, inputs=inputs, outputs=[], axes={"sequence_length": length}, context_length=514
    )
    manifest = Manifest(
        truecast="0",
        source=Source(path="somewhere", format="safetensors"),
        target="onnxruntime",
        dialect="ort",
        provider="cpu",
        precision="fp32",
        settings={},
        graph=graph,
        weights=[],
        ignored_tensors={},
        notices=[],
        files={},
        certificate=Certificate(status=Status.UNPROVEN),
    )
    (folder / "truecast.json").write_text(manifest.model_dump_json())
    for name, content in (files or {}).items():
        (folder / name).write_text(json.dumps(content))
    return folder


def ids(*names: str) -> list[int]:
    return [ID[name] for name in names]


PROMPTS = {"config_sentence_transformers.json": {"prompts": {"q": "ask: ", "d": ""}, "default_prompt_name": "q"}}


def test_the_default_prompt_goes_before_every_text_and_its_tokens_are_counted(tmp_path: Path) -> None:
    tokens = Tokens.open(artifact(tmp_path, files=PROMPTS))
    feeds = tokens.batch(["good", "it is"])
    assert feeds["input_ids"][0].tolist() == ids("[CLS]", "ask", ":", "good", "[SEP]", "[PAD]")
    assert feeds["input_ids"][1].tolist() == ids("[CLS]", "ask", ":", "it", "is", "[SEP]")
    assert feeds["prompt_length"].tolist() == [3, 3]
    bare = tokens.batch(["good"], prompt="")
    assert (bare["input_ids"].tolist(), bare["prompt_length"].tolist()) == ([ids("[CLS]", "good", "[SEP]")], [0])


def test_a_prompt_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no prompt 'passage'; the artifact has q"):
        Tokens.open(artifact(tmp_path, files=PROMPTS)).batch(["good"], prompt="passage")


def test_texts_become_lower_case_where_the_folder_says_so(tmp_path: Path) -> None:
    settings = {"sentence_roberta_config.json": {"do_lower_case": True}}
    lower = Tokens.open(artifact(tmp_path / "lower", files=settings)).batch(["Good"])
    assert lower["input_ids"].tolist() == [ids("[CLS]", "good", "[SEP]")]
    kept = Tokens.open(artifact(tmp_path / "kept")).batch(["Good"])
    assert kept["input_ids"].tolist() == [ids("[CLS]", "Good", "[SEP]")]


def test_rows_are_padded_on_the_side_that_the_tokenizer_says(tmp_path: Path) -> None:
    feeds = Tokens.open(artifact(tmp_path, padding_side="left")).batch(["good", "it is good"])
    assert feeds["input_ids"][0].tolist() == ids("[PAD]", "[PAD]", "[CLS]", "good", "[SEP]")
    assert feeds["attention_mask"][0].tolist() == [0, 0, 1, 1, 1]


def test_texts_are_cut_at_what_the_graph_was_proven_for(tmp_path: Path) -> None:
    feeds = Tokens.open(artifact(tmp_path, "1..4")).batch(["good " * 600])
    assert feeds["input_ids"].tolist() == [ids("[CLS]", "good", "good", "[SEP]")]


def test_pairs_have_their_second_text_marked(tmp_path: Path) -> None:
    tokens = Tokens.open(artifact(tmp_path))
    feeds = tokens.batch(["is it", "good"], pairs=["good", "it is"])
    assert feeds["input_ids"][0].tolist() == ids("[CLS]", "is", "it", "[SEP]", "good", "[SEP]")
    np.testing.assert_array_equal(feeds["token_type_ids"][0], [0, 0, 0, 0, 1, 1])
    with pytest.raises(InputError, match="There are 2 texts, but 1 second ones; give one for each"):
        tokens.batch(["is it", "good"], pairs=["good"])
