"""Text to tokens and back, from the artifact's tokenizer.json.

Encoding follows the file's post-processor, which is where beginning-of-sequence tokens are added; as in transformers 5,
`add_bos_token` of tokenizer_config.json adds none. `TextStream` decodes token by token without ever giving out half a
character.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

from truecast.errors import InputError
from truecast.runtime.chat import ChatTemplate

TOKENIZER_FILE, CONFIG_FILE, MAP_FILE = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What decoding gives for bytes that do not yet make up a character."""
LETTER = "a"
"""A text of one letter, to see what is put around it."""
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TextCodec:
    """A tokenizer with its special tokens and chat template.

    Other files of `folder` than tokenizer.json are read when they are first needed: a damaged one that a use does not
    need does not stop it.
    """

    def __init__(self, tokenizer: Tokenizer, folder: Path) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer, self._folder = tokenizer, folder

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Reads the tokenizer files of an artifact; raises InputError when tokenizer.json is missing or damaged."""
        folder = Path(folder)
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise InputError(f"{folder} has no {TOKENIZER_FILE} to tokenize text with; give token ids, or add it.")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing narrower
            raise InputError(f"{path} cannot be read ({error}); copy it from the checkpoint again.") from error
        return cls(tokenizer, folder)

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        return read_json(self._folder / CONFIG_FILE)

    @cached_property
    def special_tokens(self) -> Mapping[str, str]:
        """The texts of special tokens, by role (`bos_token`, `eos_token`, …)."""
        return special_tokens({**read_json(self._folder / MAP_FILE), **self._config})

    @cached_property
    def _template(self) -> ChatTemplate | None:
        source = chat_template(self._folder, self._config)
        return None if source is None else ChatTemplate(source, self.special_tokens)

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` can be used; raises InputError for a template that is damaged."""
        return self._template is not None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with the special tokens that the tokenizer puts around a text unless told not to.

        Raises InputError for half a surrogate pair, which is no text (Python has it for bytes that are not UTF-8).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"Character {error.start + 1} of the text is no Unicode character; give text in UTF-8."
            ) from error
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def added_ids(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer puts before and behind a text."""
        plain, whole = (self.encode(LETTER, add_special_tokens=added) for added in (False, True))
        starts = range(len(whole) - len(plain) + 1) if plain else ()
        start = next((i for i in starts if whole[i : i + len(plain)] == plain), len(whole))
        return whole[:start], whole[start + len(plain) :]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`; special tokens are left out unless told not to."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def stream(self) -> TextStream:
        """A decoder for tokens that come one by one."""
        return TextStream(self)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """Token ids of a conversation, ready for the model's answer; see `ChatTemplate.render` for `variables`."""
        if self._template is None:
            raise InputError("The artifact has no chat template, so it is no chat model; give it plain text instead.")
        return self.encode(self._template.render(messages, **variables), add_special_tokens=False)


class TextStream:
    """Decodes tokens as they come; the pieces joined are what decoding all tokens at once gives.

    A piece is the difference of two decodings that start at the same token, because the text of a token can depend on
    the tokens before it. Text that may still change (half a character) waits for the next token or for `flush`.
    """

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._ids: list[int] = []
        self._start = 0
        self._given = 0

    def push(self, token: int) -> str:
        """The text that `token` completes; may be empty."""
        self._ids.append(token)
        piece = self._piece()
        if not piece or piece.endswith(INCOMPLETE):
            return ""
        self._start, self._given = self._given, len(self._ids)
        return piece

    def flush(self) -> str:
        """What is left at the end; bytes that make up no character come as replacement characters."""
        piece = self._piece()
        self._start = self._given = len(self._ids)
        return piece

    def _piece(self) -> str:
        before = self._codec.decode(self._ids[self._start : self._given])
        return self._codec.decode(self._ids[self._start :])[len(before) :]


def added_ids(folder: Path) -> dict[str, list[int]]:
    """What the manifest says of the ids that tokenizer.json puts around a text; nothing where none can be opened."""
    try:
        before, behind = TextCodec.open(folder).added_ids()
    except InputError:  # a model may be of use without its tokenizer
        return {}
    return {"ids_before_text": before, "ids_behind_text": behind}


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The texts of the special tokens that a tokenizer_config.json or special_tokens_map.json names, by role."""
    found = {name: config.get(name) for name in SPECIAL_NAMES}
    texts = {name: value.get("content") if isinstance(value, Mapping) else value for name, value in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: chat_template.jinja, else chat_template.json, else the one in tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 ({error}); copy it from the checkpoint again.") from error
    template = read_json(folder / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty when there is no such file; raises InputError when it is damaged."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); copy it from the checkpoint again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object; copy it from the checkpoint again.")
    return content
