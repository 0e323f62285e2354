"""Text for the proof, and its tokens: real text shows what a format or int8 activations cost where it matters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from truecast.errors import InputError
from truecast.proof.generation import LONG_NEW
from truecast.runtime.text import TextCodec

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees Celsius because",
    "Q: What is 12 times 7?\nA:",
    "Die Katze sitzt auf dem",
    "Dear Sir or Madam, I am writing to",
    "1, 2, 4, 8, 16,",
)
"""Starts of texts of unequal length: prose, code, sums, another language."""

TEXTS = (
    """A lighthouse keeper counts the waves at night. She writes each number down in a blue book, and in the morning she
tears the page out and folds it into a boat. Nobody has ever asked her why. When the ferry comes, twice a week, the
captain waves and she waves back; they have never spoken, although each knows the other's dog by name. "If it rains,"
she said once, "we shall stay at home and play chess; if it does not, we shall walk to the old bridge." It did rain.""",
    """Bread needs four things: flour, water, salt and time. Mix them, wait an hour, fold the dough, and wait again. If
the kitchen is cold, wait longer. Bake at 230 degrees for 35 minutes, until the crust sounds hollow.

def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)
""",
    """The train from Lisbon to Porto takes about three hours. In 1856 the first line was opened; today more than 120
million people travel on it every year. Tickets cost between 15 and 40 euros, depending on the day. Le train part à huit
heures et arrive avant midi. Der Zug ist meistens pünktlich, aber nicht immer. Most travellers read, sleep or look at
the sea; a few of them talk to each other, and now and then somebody plays the guitar until the conductor comes.""",
)
"""One text for each row of the text points: prose, a recipe and code, facts in three languages."""

SEED = 20_240_811
LONG_PROMPT, LEAST_LONG = 250, 64
"""Most tokens of the long prompt, and the fewest for which there is one."""
SHORTEST, LONGEST = 3, 17
"""Lengths of random prompts, in tokens."""


def text_tokens(folder: Path, vocabulary: int) -> tuple[tuple[int, ...], ...]:
    """`TEXTS` by the artifact's tokenizer, or nothing when it has none that fits its vocabulary.

    Each begins as the tokenizer begins a text: without that token some models are not themselves.
    """
    rows = _encoded(folder, vocabulary, TEXTS)
    return tuple(tuple(row) for row in rows) if all(rows) else ()


def prompt_tokens(folder: Path, vocabulary: int) -> tuple[list[list[int]], bool]:
    """Token ids of the prompts, and whether they are real text; otherwise random ones of unequal lengths."""
    rows = _encoded(folder, vocabulary, PROMPTS)
    if all(rows):
        return rows, True
    numbers = np.random.default_rng(SEED)
    lengths = numbers.permutation(np.linspace(SHORTEST, LONGEST, len(PROMPTS)).astype(int))
    return [numbers.integers(0, vocabulary, length).tolist() for length in lengths], False


def long_prompt(texts: Sequence[Sequence[int]], vocabulary: int, context: int | None) -> list[int]:
    """The beginning of the texts one after the other, or random tokens; nothing where the context is too short."""
    length = LONG_PROMPT if context is None else min(LONG_PROMPT, context - LONG_NEW)
    tokens = [token for text in texts for token in text][:length]
    if length < LEAST_LONG:
        return []
    numbers = np.random.default_rng(SEED)
    return tokens if len(tokens) == length else numbers.integers(0, vocabulary, length).tolist()


def _encoded(folder: Path, vocabulary: int, texts: tuple[str, ...]) -> list[list[int]]:
    """Token ids of each text; an empty list where the tokenizer is missing, or gives ids beyond the vocabulary."""
    try:
        codec = TextCodec.open(folder)
    except InputError:
        return [[] for _ in texts]
    rows = [codec.encode(text) for text in texts]
    return [row if row and max(row) < vocabulary else [] for row in rows]
