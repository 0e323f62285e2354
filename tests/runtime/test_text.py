"""Text to tokens and back: as transformers does it, and in pieces that are whole characters."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from tests.runtime.tokenizer_files import BOS, SENTENCES, byte_fallback, byte_level, with_bos, write_tokenizer
from truecast.errors import InputError
from truecast.runtime.text import INCOMPLETE, TextCodec

TEXTS = [*SENTENCES, "", " two  spaces ", "a\nb\tc", "🙂🙃", f"x{BOS}y"]


@pytest.fixture(scope="module", params=[byte_level, byte_fallback])
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.open(write_tokenizer(tmp_path_factory.mktemp("tokenizer"), with_bos(request.param())))


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_tokens_and_text_are_those_of_transformers(tmp_path: Path, kind: type[Tokenizer]) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = write_tokenizer(tmp_path, with_bos(kind()))
    ours, theirs = TextCodec.open(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


def test_the_post_processor_adds_the_beginning_once(codec: TextCodec) -> None:
    begin = codec.tokenizer.token_to_id(BOS)
    assert codec.encode("hello").count(begin) == 1
    assert codec.encode("hello", add_special_tokens=False).count(begin) == 0


@pytest.mark.parametrize("processor", [None, processors.ByteLevel(trim_offsets=False)])
@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_the_config_adds_no_beginning_to_a_tokenizer_that_has_none_as_in_transformers(
    tmp_path: Path, processor: Any, name: str
) -> None:
    from transformers import AutoTokenizer

    tokenizer = byte_level()
    tokenizer.post_processor = processor
    folder = write_tokenizer(tmp_path, tokenizer, add_bos_token=True, tokenizer_class=name)
    assert TextCodec.open(folder).encode("hello") == AutoTokenizer.from_pretrained(folder).encode("hello")


def test_the_config_adds_nothing_to_a_post_processor(tmp_path: Path) -> None:
    codec = TextCodec.open(write_tokenizer(tmp_path, with_bos(byte_level()), add_bos_token=True))
    assert codec.encode("hello").count(codec.tokenizer.token_to_id(BOS)) == 1


def test_truncation_and_padding_of_the_file_are_not_used(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    codec = TextCodec.open(write_tokenizer(tmp_path, tokenizer))
    assert codec.decode(codec.encode(SENTENCES[0])) == SENTENCES[0]


@given(text=st.text(st.characters(codec="utf-8"), max_size=30))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_pieces_of_a_stream_make_up_the_text(codec: TextCodec, text: str) -> None:
    ids = codec.encode(text)
    stream = codec.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.flush() == codec.decode(ids)


@given(ids=st.lists(st.integers(0, 290), max_size=30))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_pieces_of_any_tokens_make_up_their_text(codec: TextCodec, ids: list[int]) -> None:
    stream = codec.stream()
    assert "".join([stream.push(token) for token in ids]) + stream.flush() == codec.decode(ids)


def test_a_piece_never_ends_in_half_a_character(codec: TextCodec) -> None:
    ids = codec.encode("🙂 日本 café")
    stream = codec.stream()
    pieces = [stream.push(token) for token in ids]
    assert "" in pieces
    assert not any(INCOMPLETE in piece for piece in pieces)


def test_an_unfinished_character_comes_out_at_the_end(tmp_path: Path) -> None:
    codec = TextCodec.open(write_tokenizer(tmp_path, byte_level()))
    half = codec.encode("🙃")[:-1]
    stream = codec.stream()
    assert [stream.push(token) for token in half] == [""] * len(half)
    assert INCOMPLETE in stream.flush()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [None, b"{", b"[]"])
def test_missing_and_damaged_files_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    folder = write_tokenizer(tmp_path, byte_level())
    if content is None:
        name = "tokenizer.json"
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        assert TextCodec.open(folder).special_tokens


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"])
def test_a_damaged_file_that_text_does_not_need_does_not_matter(name: str, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, byte_level())
    adds = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes()) | {"post_processor": adds}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / name).write_bytes(b"\xff[" * 5000)
    codec = TextCodec.open(folder)
    assert codec.decode(codec.encode("hello")) == "hello"
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        codec.encode_chat([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize("text", ["\udcff\udcfe", "a\ud800"])
def test_half_a_surrogate_pair_is_no_text(text: str, tmp_path: Path) -> None:
    codec = TextCodec.open(write_tokenizer(tmp_path, byte_level()))
    with pytest.raises(InputError, match=r"Character [12] of the text is no Unicode character"):
        codec.encode(text)
