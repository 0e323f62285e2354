"""A text model: an artifact's decoder and its tokenizer together, for who wants text from text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, overload

from truecast.runtime.decoder import Decoder
from truecast.runtime.generate import DEFAULT_MAX_NEW_TOKENS, Finish, GenerationOptions, Step, generate
from truecast.runtime.providers import NOTHING
from truecast.runtime.sampling import Sampling
from truecast.runtime.text import TextCodec, TextStream

OnText = Callable[[int, str], None]
"""Called with the number of the prompt and the next piece of its text."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one run of a whole batch: the prefill up to the first token, and the decoding of the others.

    `prompt_tokens` and `new_tokens` count over all rows.
    """

    prompt_tokens: int
    new_tokens: int
    rows: int
    prefill_seconds: float
    decode_seconds: float

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_rate(self) -> float:
        """New tokens per second behind the first of each row; 0 when there were none."""
        decoded = self.new_tokens - self.rows
        return decoded / self.decode_seconds if decoded > 0 else 0.0


@dataclass(frozen=True)
class Generation:
    """What one prompt gave. `tokens` include the end-of-sequence token, `text` does not; `timing` is of the batch."""

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish: Finish
    timing: Timing


class TextModel:
    """An opened artifact that continues text."""

    def __init__(self, decoder: Decoder, codec: TextCodec) -> None:
        self.decoder, self.codec = decoder, codec

    @classmethod
    def open(
        cls,
        folder: Path | str,
        provider: str = "cpu",
        threads: int | None = None,
        *,
        exact: bool = False,
        entries: Mapping[str, str] = NOTHING,
    ) -> Self:
        """Opens the artifact in `folder`; see `Decoder.open` and `TextCodec.open`. Raises InputError."""
        codec = TextCodec.open(folder)
        return cls(Decoder.open(folder, provider, threads, exact=exact, entries=entries), codec)

    @overload
    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        seed: int | None = ...,
        on_text: OnText | None = ...,
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompt: list[str],
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        seed: int | None = ...,
        on_text: OnText | None = ...,
    ) -> list[Generation]: ...

    def generate(
        self,
        prompt: str | list[str],
        *,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        on_text: OnText | None = None,
    ) -> Generation | list[Generation]:
        """Continues one prompt or a batch of them; temperature 0 (the default) takes the likeliest token.

        `on_text` is called with (number of the prompt, piece of text) as the text comes. Raises InputError on options
        outside their range and on a prompt that is empty or longer than the context.
        """
        options = GenerationOptions(max_new_tokens, Sampling(temperature, top_k, top_p, seed))
        prompts = [prompt] if isinstance(prompt, str) else prompt
        generations = self.complete([self.codec.encode(text) for text in prompts], options, on_text)
        return generations[0] if isinstance(prompt, str) else generations

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: GenerationOptions | None = None,
        on_text: OnText | None = None,
    ) -> Generation:
        """Answers a conversation of {"role": …, "content": …} through the artifact's chat template."""
        return self.complete([self.codec.encode_chat(messages)], options, on_text)[0]

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions | None = None,
        on_text: OnText | None = None,
    ) -> list[Generation]:
        """Continues prompts of token ids; returns one Generation per prompt, in order."""
        rows = [_Row(self.codec.stream(), len(prompt)) for prompt in prompts]
        watch = _Stopwatch()
        for step in watch.over(generate(self.decoder, prompts, options)):
            for index, row in enumerate(rows):
                piece = row.take(step, index)
                if piece and on_text is not None:
                    on_text(index, piece)
        new = sum(len(row.tokens) for row in rows)
        timing = Timing(sum(row.prompt_tokens for row in rows), new, len(rows), watch.first, watch.others)
        return [row.finished(timing) for row in rows]


class _Row:
    """What one prompt has given so far."""

    def __init__(self, stream: TextStream, prompt_tokens: int) -> None:
        self.stream, self.prompt_tokens = stream, prompt_tokens
        self.tokens: list[int] = []
        self.pieces: list[str] = []
        self.finish = Finish.LENGTH

    def take(self, step: Step, index: int) -> str:
        """Takes in this row's part of a step; returns the text it completes."""
        token, finish = step.tokens[index], step.finish[index]
        if token is None:
            return ""
        self.tokens.append(token)
        piece = "" if finish is Finish.END else self.stream.push(token)
        if finish is not None:
            self.finish = finish
            piece += self.stream.flush()
        self.pieces.append(piece)
        return piece

    def finished(self, timing: Timing) -> Generation:
        """The generation as a whole."""
        return Generation("".join(self.pieces), tuple(self.tokens), self.prompt_tokens, self.finish, timing)


class _Stopwatch:
    """Seconds spent inside an iterator: until its first item, and for the others; not the time of who consumes it."""

    def __init__(self) -> None:
        self.first, self.others = 0.0, 0.0

    def over(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same items, timed."""
        start = time.perf_counter()
        for count, step in enumerate(steps):
            spent = time.perf_counter() - start
            if count == 0:
                self.first = spent
            else:
                self.others += spent
            yield step
            start = time.perf_counter()
