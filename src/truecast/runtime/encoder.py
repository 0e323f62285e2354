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

from truecast.artifact import GraphInfo, TensorInfo, read_manifest
from truecast.errors import InputError
from truecast.runtime.providers import open_session, require_kernels
from truecast.runtime.text import TextCodec

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
    """The tokenizer of an encoder: texts to padded arrays by the names of its inputs."""

    def __init__(self, codec: TextCodec, names: Sequence[str], longest: int | None) -> None:
        self.codec, self.names, self.longest = codec, names, longest
        pad = codec.special_tokens.get("pad_token")
        self.pad = (codec.tokenizer.token_to_id(pad) if pad is not None else None) or 0

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """The tokenizer of the artifact in `folder`; raises InputError when it has none."""
        info = read_manifest(Path(folder)).graph
        return cls(TextCodec.open(folder), [tensor.name for tensor in info.inputs], info.context_length)

    def batch(
        self, texts: Sequence[str], max_length: int | None = None, pairs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """input_ids, attention_mask and token_type_ids, as far as the graph takes them, int64 [texts, longest].

        Args:
            texts: one for each row; longer ones are cut to `max_length` tokens and to what the model takes.
            max_length: tokens of a row at most.
            pairs: second texts, as cross-encoders take them.
        """
        limit = min([n for n in (max_length, self.longest) if n], default=None)
        tokenizer = self.codec.tokenizer
        if limit is not None:
            tokenizer.enable_truncation(limit)
        try:
            given = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
            rows = tokenizer.encode_batch(given)
        finally:
            tokenizer.no_truncation()
        width = max((len(row.ids) for row in rows), default=0)
        made = {
            "input_ids": _padded([row.ids for row in rows], width, self.pad),
            "attention_mask": _padded([[1] * len(row.ids) for row in rows], width, 0),
            "token_type_ids": _padded([row.type_ids for row in rows], width, 0),
        }
        return {name: made[name] for name in self.names if name in made}


def _padded(rows: Sequence[Sequence[int]], width: int, pad: int) -> Array:
    filled = np.full((len(rows), width), pad, np.int64)
    for index, row in enumerate(rows):
        filled[index, : len(row)] = row
    return filled
