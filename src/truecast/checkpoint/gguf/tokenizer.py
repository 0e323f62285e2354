"""GGUF metadata → tokenizer.json, tokenizer_config.json and generation_config.json.

Data flow: vocabulary, token types and merges (or scores) → the JSON that the `tokenizers` library reads.

Two kinds of vocabulary are known, by `tokenizer.ggml.model`: `llama` is SentencePiece BPE (spaces written ▁, unknown
characters as bytes, merges implied by scores), `gpt2` is byte-level BPE (merges listed, text split by a regular
expression that `tokenizer.ggml.pre` names).
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np

from truecast.checkpoint.gguf.container import Container, StringArray
from truecast.checkpoint.gguf.pretokenizers import SPLITTINGS, Splitting
from truecast.checkpoint.gguf.special_tokens import end_ids, special_id, spelled_ends
from truecast.errors import InputError

SPACE = "\u2581"
"""SentencePiece's spelling of a space."""
NO_CONTEXT_LIMIT = 1_000_000_000_000


class TokenType(IntEnum):
    """What a token is (llama.h, `llama_token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """A file's vocabulary; `scores` and `merges` may be absent. `rows`: tokens that the model has a row for."""

    container: Container
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str] | None
    rows: int

    def flag(self, name: str, default: bool) -> bool:
        """A boolean of the metadata, `tokenizer.ggml.{name}`."""
        return bool(self.container.metadata.get(f"tokenizer.ggml.{name}", default))

    def special(self, name: str) -> int | None:
        """The id of the special token `name` (bos, eos, unknown, padding); None when the file has none."""
        return special_id(self.container.metadata, name, self.rows)

    @property
    def adds_bos(self) -> bool:
        """Whether text begins with the beginning-of-sequence token; where the file is silent, as llama.cpp decides."""
        metadata = self.container.metadata
        splitting = SPLITTINGS.get(str(metadata.get("tokenizer.ggml.pre")), Splitting())
        default = metadata.get("tokenizer.ggml.model") == "llama" or splitting.begins
        return self.flag("add_bos_token", default) and self.special("bos") is not None

    @property
    def adds_eos(self) -> bool:
        """Whether text ends with the end-of-sequence token."""
        return self.flag("add_eos_token", False) and self.special("eos") is not None


def tokenizer_files(container: Container, context_length: int | None, rows: int) -> dict[str, Callable[[], bytes]]:
    """The tokenizer's files by name, each made when its function is called; none when the file has no vocabulary.

    `rows` are those of the token embedding; special tokens beyond them are left out.
    """
    metadata = container.metadata
    files: dict[str, Callable[[], bytes]] = {"generation_config.json": lambda: generation_config(container, None, rows)}
    if isinstance(metadata.get("tokenizer.ggml.tokens"), StringArray):
        vocabulary = cache(lambda: read_vocabulary(container, rows))
        files["generation_config.json"] = lambda: generation_config(container, vocabulary(), rows)
        files["tokenizer.json"] = _uncollected(lambda: tokenizer_json(vocabulary()))
        files["tokenizer_config.json"] = _uncollected(lambda: tokenizer_config(vocabulary(), context_length))
    return files


def _uncollected(make: Callable[[], bytes]) -> Callable[[], bytes]:
    """The same without Python's search for cycles, of which a vocabulary has none.

    Its 150,000 pairs of a token and its id wake a search through all objects that torch has made, which takes 0.4 s
    where the file itself takes 0.15 s.
    """

    def run() -> bytes:
        was_on = gc.isenabled()
        gc.disable()
        try:
            return make()
        finally:
            if was_on:
                gc.enable()

    return run


def read_vocabulary(container: Container, rows: int) -> Vocabulary:
    """Decode the vocabulary; tokens whose spelling ends a text are control tokens, whatever the file calls them.

    Raises:
        InputError: its arrays disagree in length.
    """
    metadata = container.metadata
    tokens = metadata["tokenizer.ggml.tokens"].decode()
    types = _numbers(container, "token_type", len(tokens), TokenType.NORMAL)
    scores = _numbers(container, "scores", len(tokens), 0.0)
    for index in spelled_ends(tokens, types):
        if types[index] in (TokenType.NORMAL, TokenType.USER_DEFINED):
            types[index] = TokenType.CONTROL
    merges = metadata.get("tokenizer.ggml.merges")
    listed = merges.decode() if isinstance(merges, StringArray) else None
    return Vocabulary(container, tokens, types, scores, listed, min(rows, len(tokens)))


def _numbers(container: Container, name: str, count: int, default: float) -> list[Any]:
    values = container.metadata.get(f"tokenizer.ggml.{name}")
    if values is None:
        return [default] * count
    if len(values) != count:
        raise InputError(f"{container.path}: {len(values)} values in tokenizer.ggml.{name} for {count} tokens.")
    return list(values.tolist())


def tokenizer_json(vocabulary: Vocabulary) -> bytes:
    """The content of tokenizer.json.

    Raises:
        InputError: a kind of vocabulary, or a way of splitting text, that is not known.
    """
    kind = vocabulary.container.metadata.get("tokenizer.ggml.model")
    if not isinstance(kind, str) or kind not in _MAKERS:
        raise InputError(
            f"{vocabulary.container.path} has a tokenizer of kind {kind!r}, where {_listed(_MAKERS)} are known; "
            "take the tokenizer files from the original Hugging Face folder."
        )
    parts = _MAKERS[kind](vocabulary)
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        **parts,
        "post_processor": _template(vocabulary, parts["post_processor"]),
    }
    return json.dumps(document, ensure_ascii=False).encode()


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    kinds = {TokenType.UNKNOWN: True, TokenType.CONTROL: True, TokenType.USER_DEFINED: False}
    return [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kinds[TokenType(kind)],
        }
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in kinds and not _is_blank(token)
    ]


def _is_blank(token: str) -> bool:
    """Runs of spaces: the converter writes them as they are, the model's own vocabulary in SentencePiece's spelling."""
    return token != "" and token.strip(" ") == ""


def _template(vocabulary: Vocabulary, otherwise: Any) -> Any:
    """The post-processor that puts the first and last token around a text."""
    bos, eos = vocabulary.special("bos"), vocabulary.special("eos")
    before = [bos] if vocabulary.adds_bos and bos is not None else []
    after = [eos] if vocabulary.adds_eos and eos is not None else []
    if not before and not after:
        return otherwise
    names = {index: vocabulary.tokens[index] for index in (*before, *after)}
    template = {
        "type": "TemplateProcessing",
        "single": _around(before, after, names, "A", 0),
        "pair": [*_around(before, after, names, "A", 0), *_around(before, after, names, "B", 1)],
        "special_tokens": {name: {"id": name, "ids": [index], "tokens": [name]} for index, name in names.items()},
    }
    return template if otherwise is None else {"type": "Sequence", "processors": [otherwise, template]}


def _around(
    before: list[int], after: list[int], names: Mapping[int, str], sequence: str, kind: int
) -> list[dict[str, Any]]:
    def special(index: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": names[index], "type_id": kind}}

    return [*map(special, before), {"Sequence": {"id": sequence, "type_id": kind}}, *map(special, after)]


def _bpe(vocabulary: dict[str, int], merges: list[str], **settings: Any) -> dict[str, Any]:
    defaults = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return {**defaults, **settings, "vocab": vocabulary, "merges": merges}


def _sentencepiece(vocabulary: Vocabulary) -> dict[str, Any]:
    prefix = vocabulary.flag("add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    pieces = [SPACE * len(token) if _is_blank(token) else token for token in vocabulary.tokens]
    unknown = vocabulary.special("unknown")
    return {
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]} if prefix else replace,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [*decoders, strip] if prefix else decoders},
        "model": _bpe(
            {piece: index for index, piece in enumerate(pieces)},
            merges_from_scores(pieces, vocabulary.types, vocabulary.scores),
            unk_token=None if unknown is None else pieces[unknown],
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def merges_from_scores(pieces: list[str], types: list[int], scores: list[float]) -> list[str]:
    """The merges "left right" that a SentencePiece BPE vocabulary implies, best first.

    SentencePiece merges the neighbours whose joined piece scores best; so every way to cut a piece into two pieces is
    a merge, ranked by the piece. User-defined pieces are matched before any merging, so theirs come first, in order.
    """
    kinds, ranks = np.asarray(types), np.asarray(scores, np.float64)
    cuttable = np.flatnonzero(np.isin(kinds, (TokenType.NORMAL, TokenType.USER_DEFINED)))
    normal = kinds[cuttable] == TokenType.NORMAL
    # Stable, so that pieces of the same rank stay in the order of the vocabulary.
    ranked = cuttable[np.lexsort((np.where(normal, -ranks[cuttable], 0.0), normal))].tolist()
    known = {pieces[index] for index in ranked if " " not in pieces[index]}
    return [
        f"{left} {right}"
        for piece in (pieces[index] for index in ranked)
        for cut in range(len(piece) - 1, 0, -1)
        if (left := piece[:cut]) in known and (right := piece[cut:]) in known
    ]


def _byte_level(vocabulary: Vocabulary) -> dict[str, Any]:
    splitting = _splitting(vocabulary)
    if vocabulary.merges is None:
        raise InputError(f"{vocabulary.container.path} has a byte-level tokenizer without tokenizer.ggml.merges.")
    level = {"type": "ByteLevel", "add_prefix_space": vocabulary.flag("add_space_prefix", False), "trim_offsets": False}
    return {
        "normalizer": {"type": "NFC"} if splitting.composes else None,
        "pre_tokenizer": _pre_tokenizer(splitting, level),
        "post_processor": {**level, "use_regex": True},
        "decoder": {**level, "use_regex": True},
        "model": _bpe(
            {token: index for index, token in enumerate(vocabulary.tokens)},
            vocabulary.merges,
            ignore_merges=splitting.whole_words,
        ),
    }


def _splitting(vocabulary: Vocabulary) -> Splitting:
    name = vocabulary.container.metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(name, str) or name not in SPLITTINGS:
        raise InputError(
            f"{vocabulary.container.path} splits text by {name!r}, where {_listed(SPLITTINGS)} are known; "
            "take the tokenizer files from the original Hugging Face folder."
        )
    return SPLITTINGS[name]


def _pre_tokenizer(splitting: Splitting, level: dict[str, Any]) -> dict[str, Any]:
    before: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in splitting.patterns
    ]
    if splitting.digits:
        before.append({"type": "Digits", "individual_digits": True})
    bytes_only = {**level, "use_regex": not splitting.patterns}
    return {"type": "Sequence", "pretokenizers": [*before, bytes_only]} if before else bytes_only


_MAKERS: Mapping[str, Callable[[Vocabulary], dict[str, Any]]] = {"llama": _sentencepiece, "gpt2": _byte_level}


def tokenizer_config(vocabulary: Vocabulary, context_length: int | None) -> bytes:
    """The content of tokenizer_config.json."""
    metadata = vocabulary.container.metadata
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    indices = {key: vocabulary.special(name) for name, key in names.items()}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: vocabulary.tokens[index] for key, index in indices.items() if index is not None},
        "add_bos_token": vocabulary.adds_bos,
        "add_eos_token": vocabulary.adds_eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length or NO_CONTEXT_LIMIT,
        "chat_template": _chat_templates(metadata),
    }
    return _document({key: value for key, value in config.items() if value is not None})


def _chat_templates(metadata: Mapping[str, Any]) -> Any:
    """The template, or a list where a file has more of them, each with its name; None when it has none."""
    default, names = metadata.get("tokenizer.chat_template"), metadata.get("tokenizer.chat_templates")
    if not isinstance(names, StringArray):
        return default
    named = {name: metadata.get(f"tokenizer.chat_template.{name}") for name in names.decode()}
    listed = {"default": default, **named}
    return [{"name": name, "template": text} for name, text in listed.items() if isinstance(text, str)]


def generation_config(container: Container, vocabulary: Vocabulary | None, rows: int) -> bytes:
    """The content of generation_config.json: the special tokens, and every token that ends a text for llama.cpp."""
    metadata = container.metadata
    tokens, types = (vocabulary.tokens, vocabulary.types) if vocabulary is not None else ([], [])
    ends = end_ids(metadata, tokens, types, rows)
    config = {
        "bos_token_id": special_id(metadata, "bos", rows),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": special_id(metadata, "padding", rows),
    }
    return _document({key: value for key, value in config.items() if value is not None})


def _document(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _listed(known: Mapping[str, object]) -> str:
    return ", ".join(sorted(known))
