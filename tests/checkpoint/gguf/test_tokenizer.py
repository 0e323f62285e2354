"""Tokenizers rebuilt from GGUF metadata give the tokens of the tokenizer that the metadata describe."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from tests.checkpoint.gguf.files import close
from truecast.checkpoint.gguf.container import Container, read_container
from truecast.checkpoint.gguf.tokenizer import merges_from_scores, tokenizer_files
from truecast.errors import InputError

ROWS = 1000
"""Of the token embedding: as many as any vocabulary here."""
CORPUS = [
    "The capital of France is Paris, the capital of Spain is Madrid.",
    "def area(radius):\n    return 3.14159 * radius ** 2  # it's 12345 units\n",
    "Überraschung! Naïve café, 北京 and Москва; don't we'll I'd THEY'RE.",
    "   many   spaces\t\tand tabs\r\n\r\nand lines",
    "1234567 and $12.50 <=> x^2 ~ 100%; \u3053\u3093\u306b\u3061\u306f\u3001\u4e16\u754c\u3002\n\n\n.net (1)",
]
TEXTS = [*CORPUS, "", " ", "unseen: ñandú 🙂 0007", "e\u0301 composed or not", "<|end|>after<|end|> end"]


def byte_level(*patterns: str, digits: bool = False, nfc: bool = False) -> Tokenizer:
    """A byte-level tokenizer trained on the corpus, whose merges depend on how it splits."""
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not patterns)
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    parts += [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*parts, level])
    tokenizer.normalizer = normalizers.NFC() if nfc else None
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"]
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


def write(path: Path, kind: str, fields: Callable[[gguf.GGUFWriter], None]) -> Container:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    fields(writer)
    close(writer)
    return read_container(path)


def byte_level_file(path: Path, tokenizer: Tokenizer, pre: str, **more: Any) -> Container:
    """A file with the vocabulary and the merges of `tokenizer`; `more` are other numbers of the metadata."""
    model = json.loads(tokenizer.to_str())["model"]

    def fields(writer: gguf.GGUFWriter) -> None:
        tokens = sorted(model["vocab"], key=model["vocab"].get)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token == "<|end|>" else 1 for token in tokens])
        writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
        writer.add_eos_token_id(0)
        for key, value in more.items():
            writer.add_uint32(f"tokenizer.ggml.{key}", value)

    return write(path, "gpt2", fields)


def rebuilt(container: Container) -> Tokenizer:
    return Tokenizer.from_buffer(tokenizer_files(container, 64, ROWS)["tokenizer.json"]())


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SEED_CODER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
FALCON_REST = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "[0-9][0-9][0-9]",
)


@pytest.mark.parametrize(
    ("pre", "trained"),
    [
        ("gpt-2", byte_level()),
        ("default", byte_level()),
        ("llama-bpe", byte_level(LLAMA3)),
        ("qwen2", byte_level(PRETOKENIZE_REGEX, nfc=True)),
        ("smollm", byte_level(digits=True)),
        ("glm4", byte_level(LLAMA3)),
        ("exaone4", byte_level()),
        ("seed-coder", byte_level(SEED_CODER)),
        ("hunyuan", byte_level(PRETOKENIZE_REGEX)),
        ("hunyuan-dense", byte_level(*DEEPSEEK3)),
        ("bloom", byte_level(BLOOM)),
        ("falcon", byte_level(r"[\p{P}$+<=>^~|`]+", *FALCON_REST)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_byte_level_text_becomes_the_same_tokens_and_comes_back(pre: str, trained: Tokenizer, tmp_path: Path) -> None:
    tokenizer = rebuilt(byte_level_file(tmp_path / "t.gguf", trained, pre))
    for text in TEXTS:
        assert tokenizer.pre_tokenizer.pre_tokenize_str(text) == trained.pre_tokenizer.pre_tokenize_str(text)
        ids = tokenizer.encode(text).ids
        assert ids == trained.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == trained.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize(("pre", "expected"), [("llama-bpe", 1), ("gpt-2", 0)])
def test_only_some_byte_level_texts_begin_with_a_token_where_the_file_is_silent(
    pre: str, expected: int, tmp_path: Path
) -> None:
    container = byte_level_file(tmp_path / "t.gguf", byte_level(), pre, bos_token_id=0)
    assert rebuilt(container).encode("a").tokens[:-1] == ["<|end|>"] * expected


@pytest.mark.parametrize(("pre", "expected"), [("llama-bpe", ["capital"]), ("gpt-2", ["capi", "tal"])])
def test_a_word_of_the_vocabulary_is_one_token_for_llama3_whatever_the_merges_say(
    pre: str, expected: list[str], tmp_path: Path
) -> None:
    letters = {letter: index for index, letter in enumerate([*"capitl", "ca", "pi", "capi", "ta", "tal", "capital"])}
    merges = [("c", "a"), ("p", "i"), ("ca", "pi"), ("t", "a"), ("ta", "l")]
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=merges))
    assert rebuilt(byte_level_file(tmp_path / "t.gguf", tokenizer, pre)).encode("capital").tokens == expected


def test_an_unknown_way_of_splitting_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    container = byte_level_file(tmp_path / "t.gguf", byte_level(), "origami")
    with pytest.raises(InputError, match=r"'origami'.*llama-bpe.*original Hugging Face folder"):
        rebuilt(container)


def test_an_unknown_kind_of_vocabulary_is_refused(tmp_path: Path) -> None:
    container = write(tmp_path / "t.gguf", "quipu", lambda writer: writer.add_token_list(["a"]))
    with pytest.raises(InputError, match="'quipu'"):
        rebuilt(container)


PIECES: Mapping[str, tuple[float, int]] = {
    "<pad>": (-1000.0, 3),
    "<s>": (-1000.0, 3),
    "</s>": (-1000.0, 3),
    "<unk>": (-1000.0, 2),
    "  ": (-1000.0, 4),
    "<b>": (-1000.0, 4),
    **{f"<0x{byte:02X}>": (-1000.0, 6) for byte in range(256)},
    "ab": (-1.0, 1),
    "bc": (-2.0, 1),
    "abc": (-3.0, 1),
    "\u2581a": (-4.0, 1),
    **{letter: (-100.0 - index, 1) for index, letter in enumerate("abc\u2581")},
}


def sentencepiece_file(path: Path, **flags: bool | int | str) -> Container:
    def fields(writer: gguf.GGUFWriter) -> None:
        writer.add_token_list(list(PIECES))
        writer.add_token_scores([score for score, _ in PIECES.values()])
        writer.add_token_types([kind for _, kind in PIECES.values()])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(3)
        for name, value in flags.items():
            adders = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
            adders[type(value)](f"tokenizer.{name.replace('__', '.')}", value)

    return write(path, "llama", fields)


def pieces_of(container: Container, text: str) -> list[str]:
    return list(rebuilt(container).encode(text).tokens)


def test_the_best_scored_piece_is_merged_first(tmp_path: Path) -> None:
    container = sentencepiece_file(tmp_path / "t.gguf", ggml__add_space_prefix=False)
    assert pieces_of(container, "abc") == ["<s>", "abc"]
    assert pieces_of(container, "bcbab") == ["<s>", "bc", "b", "ab"]


def test_merges_are_every_way_to_cut_a_piece_ranked_by_its_score() -> None:
    pieces, scores = ["a", "b", "ab", "ba", "aba"], [-9.0, -9.0, -2.0, -1.0, -3.0]
    assert merges_from_scores(pieces, [1] * 5, scores) == ["b a", "a b", "ab a", "a ba"]


def test_a_space_is_put_before_the_text_only_when_the_file_says_so(tmp_path: Path) -> None:
    assert pieces_of(sentencepiece_file(tmp_path / "a.gguf", ggml__add_space_prefix=True), "a") == ["<s>", "\u2581a"]
    assert pieces_of(sentencepiece_file(tmp_path / "b.gguf", ggml__add_space_prefix=False), "a") == ["<s>", "a"]


def test_unknown_characters_become_bytes_and_come_back(tmp_path: Path) -> None:
    container = sentencepiece_file(tmp_path / "t.gguf", ggml__add_space_prefix=False)
    assert pieces_of(container, "é") == ["<s>", "<0xC3>", "<0xA9>"]
    tokenizer = rebuilt(container)
    assert tokenizer.decode(tokenizer.encode("aé  b🙂c").ids) == "aé  b🙂c"


def test_user_defined_pieces_are_matched_whole(tmp_path: Path) -> None:
    container = sentencepiece_file(tmp_path / "t.gguf", ggml__add_space_prefix=False)
    assert pieces_of(container, "a<b>c") == ["<s>", "a", "<b>", "c"]
    assert pieces_of(container, "a  c") == ["<s>", "a", "\u2581\u2581", "c"]


def test_the_first_and_last_token_follow_the_flags(tmp_path: Path) -> None:
    flags = {"ggml__add_bos_token": False, "ggml__add_eos_token": True, "ggml__add_space_prefix": False}
    assert pieces_of(sentencepiece_file(tmp_path / "t.gguf", **flags), "a") == ["a", "</s>"]


def test_transformers_loads_the_files_with_their_special_tokens_and_chat_template(tmp_path: Path) -> None:
    template = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"
    container = sentencepiece_file(tmp_path / "t.gguf", chat_template=template)
    for name, make in tokenizer_files(container, 64, ROWS).items():
        (tmp_path / name).write_bytes(make())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    assert tokenizer.model_max_length == 64
    assert tokenizer("ab")["input_ids"] == rebuilt(container).encode("ab").ids
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "<s>a"


def test_every_chat_template_of_a_file_is_kept_with_its_name(tmp_path: Path) -> None:
    def fields(writer: gguf.GGUFWriter) -> None:
        writer.add_token_list(list(PIECES))
        writer.add_token_scores([score for score, _ in PIECES.values()])
        writer.add_token_types([kind for _, kind in PIECES.values()])
        texts = {"default": "plain {{ messages[0].content }}", "rag": "sources {{ messages[0].content }}"}
        writer.add_chat_template([{"name": name, "template": text} for name, text in texts.items()])

    for name, make in tokenizer_files(write(tmp_path / "t.gguf", "llama", fields), 64, ROWS).items():
        (tmp_path / name).write_bytes(make())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    message = [{"role": "user", "content": "x"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == "plain x"
    assert tokenizer.apply_chat_template(message, tokenize=False, chat_template="rag") == "sources x"


def test_a_large_byte_level_vocabulary_takes_seconds(tmp_path: Path) -> None:
    size = 262_144
    tokens = [f"t{index}" for index in range(size)]

    def fields(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(tokens)
        writer.add_token_types([1] * size)
        writer.add_token_merges([f"{token} x" for token in tokens])

    container = write(tmp_path / "t.gguf", "gpt2", fields)
    start = time.process_time()
    made = {name: make() for name, make in tokenizer_files(container, 64, ROWS).items()}
    assert time.process_time() - start < 5
    assert json.loads(made["tokenizer.json"])["model"]["vocab"][tokens[-1]] == size - 1


def test_an_end_of_turn_token_ends_a_text_too(tmp_path: Path) -> None:
    def generation(**flags: Any) -> Any:
        return json.loads(
            tokenizer_files(sentencepiece_file(tmp_path / "t.gguf", **flags), 64, ROWS)["generation_config.json"]()
        )

    assert generation() == {"bos_token_id": 1, "eos_token_id": 2}
    assert generation(ggml__eot_token_id=5) == {"bos_token_id": 1, "eos_token_id": [2, 5]}


def test_a_vocabulary_whose_arrays_disagree_is_refused(tmp_path: Path) -> None:
    def fields(writer: gguf.GGUFWriter) -> None:
        writer.add_token_list(["a", "b"])
        writer.add_token_scores([0.0])

    with pytest.raises(InputError, match=r"1 values in tokenizer\.ggml\.scores for 2 tokens"):
        rebuilt(write(tmp_path / "t.gguf", "llama", fields))


@pytest.mark.parametrize("was_on", [True, False])
@pytest.mark.parametrize("scores", [1, 2])
def test_the_search_for_cycles_is_as_it_was_whether_a_tokenizer_was_made_or_not(
    scores: int, was_on: bool, tmp_path: Path
) -> None:
    def fields(writer: gguf.GGUFWriter) -> None:
        writer.add_token_list(["a", "b"])
        writer.add_token_scores([0.0] * scores)

    make = tokenizer_files(write(tmp_path / "t.gguf", "llama", fields), 64, ROWS)["tokenizer.json"]
    (gc.enable if was_on else gc.disable)()
    try:
        with nullcontext() if scores == 2 else pytest.raises(InputError):
            make()
        assert gc.isenabled() is was_on
    finally:
        gc.enable()
