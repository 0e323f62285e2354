"""What goes along with a graph, from the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from truecast.checkpoint.model import Checkpoint
from truecast.targets.side_files import eos_token_ids, tokens_without_rows


def checkpoint(**files: dict[str, Any]) -> Checkpoint:
    """One without tensors; `files` are JSON files by their stems, `config` the configuration."""
    config = files.pop("config", {})
    sides = {f"{stem}.json": json.dumps(content).encode() for stem, content in files.items()}
    return Checkpoint(Path("x"), "safetensors", config, {}, {name: lambda c=c: c for name, c in sides.items()})  # type: ignore[misc]


def test_ends_are_those_of_both_files_that_the_vocabulary_has() -> None:
    source = checkpoint(config={"eos_token_id": [2, 316]}, generation_config={"eos_token_id": 5})
    assert eos_token_ids(source, 307) == [2, 5]
    assert eos_token_ids(source) == [2, 5, 316]


ADDED = [{"id": 3, "content": "<turn>"}, {"id": 4, "content": "[PAD]"}]


@pytest.mark.parametrize(("rows", "said"), [(5, 0), (4, 1), (3, 1), (2, 1)])
def test_tokens_beyond_the_embedding_are_said(rows: int, said: int) -> None:
    source = checkpoint(tokenizer={"model": {"vocab": {"a": 0, "b": 1, "c": 2}}, "added_tokens": ADDED})
    notices = tokens_without_rows(source, rows)
    assert len(notices) == said
    assert all(f"{5 - rows} tokens" in notice for notice in notices)


def test_vocabularies_that_are_lists_are_counted() -> None:
    source = checkpoint(tokenizer={"model": {"vocab": [["a", 0.0], ["b", -1.0]]}, "added_tokens": []})
    assert len(tokens_without_rows(source, 1)) == 1
    assert tokens_without_rows(source, 2) == tokens_without_rows(checkpoint(), 2) == ()
