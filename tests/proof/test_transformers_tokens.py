"""transformers' tokenizer of an artifact: differences from tokenizer.json are said."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from tests.runtime.tokenizer_files import byte_level, with_bos, write_tokenizer
from truecast.proof import transformers_tokens
from truecast.proof.transformers_tokens import transformers_notes
from truecast.runtime.text import TextCodec


def test_the_same_ids_need_no_note(tmp_path: Path) -> None:
    assert transformers_notes(tmp_path) == []
    assert transformers_notes(write_tokenizer(tmp_path, with_bos(byte_level()))) == []


def test_other_ids_are_noted_with_the_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tokenizer(tmp_path, with_bos(byte_level()))
    other: Tokenizer = byte_level()
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)

    class Other:
        def encode(self, text: str) -> list[int]:
            return list(other.encode(text).ids)

    monkeypatch.setattr(transformers_tokens.AutoTokenizer, "from_pretrained", lambda *args, **options: Other())
    (note,) = transformers_notes(folder)
    assert "transformers' Other gives other ids than tokenizer.json for 13 of 13 lines, the first 'The capital" in note
    assert note.endswith("those of tokenizer.json are meant.")


def test_a_folder_whose_tokenizer_transformers_does_not_open_is_noted(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, byte_level(), tokenizer_class="NoSuchTokenizer", auto_map={"AutoTokenizer": 1})
    (note,) = transformers_notes(folder)
    assert note.startswith("transformers has no tokenizer for the artifact's folder (")


def test_what_is_put_around_a_text_is_found(tmp_path: Path) -> None:
    plain = write_tokenizer(tmp_path / "plain", byte_level())
    begun = write_tokenizer(tmp_path / "begun", with_bos(byte_level()))
    assert TextCodec.open(plain).added_ids() == ([], [])
    assert TextCodec.open(begun).added_ids() == ([0], [])
