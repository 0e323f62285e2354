"""A graph without a cache, opened: arrays in, arrays out, and texts where the artifact can tokenize.

Data flow: texts → ids and mask, padded on the right to the longest (`Tokens`) → session → outputs by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import normalizers

from truecast.artifact import GraphInfo, TensorInfo, read_manifest
from truecast.errors import InputError
from truecast.runtime.providers import NOTHING, open_session, require_kernels
from truecast.runtime.text import TextCodec, read_json

Array = NDArray[Any]


class Encoder:
    """A session of an artifact without a cache."""

    def __init__(self, session: ort.InferenceSession, info: GraphInfo) -> None:
        self.session, self.info = session, info
        self._inputs = {tensor.name: tensor for tensor in info.inputs}

    @classmethod
    def open(cls, folder: Path | str, provider: str = "cpu", threads: int | None = None) -> Self:
        """Opens the artifact in `folder`; raises InputError when it is none, or is a decoder."""
        folder = Path(folder)
        info = read_manifest(folder).graph
        if info.cache is not None:
            raise InputError(f"{folder} is a language model with a cache; use generate(), or session() for the graph.")
        require_kernels(folder, info.providers, provider)
        session = open_session(
            folder / info.file, provider, threads, entries=info.session_entries, level=info.optimization, arena=True
        )
        return cls(session, info)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name, in the dtypes of the graph; floats of `feeds` are cast to what it takes.

        Raises InputError for an input that is missing or unknown, and for a shape that the graph does not take.
        """
        missing = [name for name in self._inputs if name not in feeds]
        foreign = [name for name in feeds if name not in self._inputs]
        if missing or foreign:
            word = f"lacks {missing[0]!r}" if missing else f"has {foreign[0]!r}"
            raise InputError(f"The input {word}; the graph takes {', '.join(self._inputs)}.")
        given = {name: _fitting(np.asarray(array), self._inputs[name]) for name, array in feeds.items()}
        names = [value.name for value in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, given), strict=True))


def _fitting(array: Array, info: TensorInfo) -> Array:
    if array.ndim != len(info.shape) or any(isinstance(n, int) and n != s for n, s in zip(info.shape, array.shape)):  # noqa: B905
        raise InputError(f"The input {info.name} has the shape {list(array.shape)}; the graph takes {info.shape}.")
    return array.astype(info.dtype, copy=False)


class Tokens:
    """The tokenizer of an encoder: texts to padded arrays by the names of its inputs.

    `prompts` are those of a sentence-transformers folder by their names, `prompt_name` the one used when none is asked
    for. `pads_left` says on which side shorter rows are padded, as tokenizer_config.json does.
    """

    def __init__(
        self,
        codec: TextCodec,
        names: Sequence[str],
        longest: int | None,
        prompts: Mapping[str, str] = NOTHING,
        prompt_name: str | None = None,
        pads_left: bool = False,
    ) -> None:
        self.codec, self.names, self.longest = codec, names, longest
        self.prompts, self.prompt_name, self.pads_left = prompts, prompt_name, pads_left
        pad = codec.special_tokens.get("pad_token")
        self.pad = (codec.tokenizer.token_to_id(pad) if pad is not None else None) or 0

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """The tokenizer of the artifact in `folder`; raises InputError when it has none."""
        folder = Path(folder)
        info, codec = read_manifest(folder).graph, TextCodec.open(folder)
        settings = [read_json(path) for path in sorted(folder.glob("sentence_*_config.json"))]
        if any(one.get("do_lower_case") for one in settings):
            own = codec.tokenizer.normalizer
            codec.tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([own] if own else [])])
        sentences = read_json(folder / "config_sentence_transformers.json")
        prompts = {name: text for name, text in (sentences.get("prompts") or {}).items() if text}
        side = read_json(folder / "tokenizer_config.json").get("padding_side")
        names = [tensor.name for tensor in info.inputs]
        return cls(codec, names, _longest(info), prompts, sentences.get("default_prompt_name"), side == "left")

    def batch(
        self,
        texts: Sequence[str],
        max_length: int | None = None,
        pairs: Sequence[str] | None = None,
        prompt: str | None = None,
    ) -> dict[str, Array]:
        """input_ids, attention_mask and token_type_ids, as far as the graph takes them, int64 [texts, longest].

        Args:
            texts: one for each row; longer ones are cut to `max_length` tokens and to what the model takes.
            max_length: tokens of a row at most.
            pairs: second texts, as cross-encoders take them.
            prompt: the name of the prompt that goes before every text, "" for none; None takes the folder's default.

        Raises InputError for a prompt that the folder does not have, and for a pair without its second text.
        """
        rows = self.encodings(texts, max_length, pairs, prompt)
        width = max((len(row.ids) for row in rows), default=0)
        made = {
            "input_ids": self._padded([row.ids for row in rows], width, self.pad),
            "attention_mask": self._padded([[1] * len(row.ids) for row in rows], width, 0),
            "token_type_ids": self._padded([row.type_ids for row in rows], width, 0),
            "prompt_length": np.full(len(rows), self._length(self._prompt(prompt)), np.int64),
        }
        return {name: made[name] for name in self.names if name in made}

    def encodings(
        self,
        texts: Sequence[str],
        max_length: int | None = None,
        pairs: Sequence[str] | None = None,
        prompt: str | None = None,
    ) -> Sequence[Any]:
        """What the tokenizers library makes of every row, with offsets and special tokens; see `batch`."""
        if pairs is not None and len(pairs) != len(texts):
            raise InputError(f"There are {len(texts)} texts, but {len(pairs)} second ones; give one for each.")
        before = self._prompt(prompt)
        given = [before + text for text in texts]
        limit = min([n for n in (max_length, self.longest) if n], default=None)
        tokenizer = self.codec.tokenizer
        if limit is not None:
            tokenizer.enable_truncation(limit)
        try:
            rows: Sequence[Any] = tokenizer.encode_batch(
                given if pairs is None else list(zip(given, pairs, strict=True))
            )
        finally:
            tokenizer.no_truncation()
        return rows

    def _prompt(self, name: str | None) -> str:
        name = self.prompt_name if name is None else name
        if not name:
            return ""
        if name not in self.prompts and name != self.prompt_name:
            raise InputError(f"There is no prompt {name!r}; the artifact has {', '.join(self.prompts) or 'none'}.")
        return self.prompts.get(name, "")

    def _length(self, prompt: str) -> int:
        """Tokens of a prompt as sentence-transformers counts them: with what begins a text, without what ends it."""
        if not prompt:
            return 0
        ids = self.codec.tokenizer.encode(prompt).ids
        special = {number for number, token in self.codec.tokenizer.get_added_tokens_decoder().items() if token.special}
        return len(ids) - (ids[-1] in special)

    def _padded(self, rows: Sequence[Sequence[int]], width: int, pad: int) -> Array:
        filled = np.full((len(rows), width), pad, np.int64)
        for index, row in enumerate(rows):
            filled[index, width - len(row) if self.pads_left else 0 :][: len(row)] = row
        return filled


def _longest(info: GraphInfo) -> int | None:
    """Tokens of a row at most: the end of the axis that the graph was proven on, else the model's positions."""
    shape = next((tensor.shape for tensor in info.inputs if tensor.name == "input_ids"), [])
    _, _, end = info.axes.get(str(shape[-1]) if shape else "", "").partition("..")
    return int(end) if end else info.context_length
