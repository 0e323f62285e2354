"""Tier 4: the same greedy tokens as the author's model, from prompts of unequal length in one batch.

The artifact generates through truecast's own runtime. If the author's model, given each of these texts at once, chooses
every token behind those before it, they are its own greedy texts (`confirmed_story`). Otherwise it generates in a plain
loop (`author_story`), and so it does where its rotation depends on the length of the text. Where the two part, the
author's model is asked how much it prefers its own token; only when that is less than the error measured in tier 2 (a
logit may be off by it, upwards in one token and downwards in the other) is the difference excused. Behind the first
difference a row is not compared: the texts are different ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from truecast.artifact import Check
from truecast.proof.operators import Array
from truecast.proof.reference import Reference
from truecast.proof.sessions import RUN_ERRORS
from truecast.proof.tally import broken, check, reason, reported
from truecast.runtime.decoder import Decoder, positions
from truecast.runtime.generate import GenerationOptions, generate

TIER = "generation"
NEW_TOKENS = 64
LONG_NEW = 12
"""New tokens behind one long prompt, which they carry past position 256."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Story:
    """What the author's model generated: tokens [rows, new], and by how much it preferred its token to the second."""

    prompts: Sequence[Sequence[int]]
    tokens: Array
    gaps: Array


@dataclass(frozen=True)
class Agreement:
    """How far an artifact's tokens agree with a story.

    `equal` counts the tokens up to each row's first difference, `excused` the rows that part at a tie, and `parted` the
    others, each as a sentence.
    """

    equal: tuple[int, ...]
    excused: int
    parted: tuple[str, ...]


def new_tokens(prompts: Sequence[Sequence[int]], context: int | None) -> int:
    """How many tokens to generate: NEW_TOKENS, or what the context leaves."""
    longest = max(len(prompt) for prompt in prompts)
    return NEW_TOKENS if context is None else max(1, min(NEW_TOKENS, context - longest))


def author_story(
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    count: int,
    progress: Progress | None = None,
    behind: int | None = None,
) -> Story:
    """Greedy tokens of the author's model, the prompts padded on the left in one batch.

    `behind` is the length behind which its rotation takes other factors for the whole text: each prompt is then a batch
    of its own, and a text that reaches it is computed again.
    """
    if behind is not None and len(prompts) > 1:
        alone = [author_story(reference, [prompt], count, None, behind) for prompt in prompts]
        return Story(prompts, *(np.concatenate([getattr(s, part) for s in alone]) for part in ("tokens", "gaps")))
    length = max(len(prompt) for prompt in prompts)
    ids, mask = (np.zeros((len(prompts), length), np.int64) for _ in range(2))
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :], mask[row, length - len(prompt) :] = prompt, 1
    reference.reset()
    cache, tokens, gaps, text = reference.new_cache(), [], [], ids
    for index in range(count):
        if index and behind is not None and text.shape[1] == behind + 1:
            reference.reset()
            cache, ids = reference.new_cache(), text
        logits = reference.step(cache, ids, mask, positions(mask, ids.shape[1]), 1)[:, -1]
        best = np.partition(logits, -2, axis=-1)[:, -2:]
        ids = logits.argmax(-1)[:, None].astype(np.int64)
        mask, text = np.concatenate([mask, np.ones_like(ids)], 1), np.concatenate([text, ids], 1)
        tokens.append(ids[:, 0])
        gaps.append(best[:, 1] - best[:, 0])
        if progress:
            progress(index + 1, count)
    return Story(prompts, np.stack(tokens, 1), np.stack(gaps, 1))


def confirmed_story(
    reference: Reference, prompts: Sequence[Sequence[int]], tokens: Array, progress: Progress | None = None
) -> Story | None:
    """Tokens [rows, count] as the author's story; None where his model would have chosen another one anywhere."""
    gaps = []
    for prompt, row in zip(prompts, tokens, strict=True):
        ids = np.array([[*prompt, *row[:-1]]], np.int64)
        mask = np.ones_like(ids)
        reference.reset()
        logits = reference.step(reference.new_cache(), ids, mask, positions(mask, ids.shape[1]), len(row))[0]
        if not np.array_equal(logits.argmax(-1), row):
            return None
        best = np.partition(logits, -2, axis=-1)[:, -2:]
        gaps.append(best[:, 1] - best[:, 0])
        if progress:
            progress(len(gaps), len(prompts))
    return Story(prompts, tokens, np.stack(gaps))


def story_of(
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    tokens: Array | str,
    count: int,
    by_length: bool,
    progress: Progress | None = None,
    behind: int | None = None,
) -> Story:
    """The author's text behind the prompts; the artifact's, where he would have chosen its every token.

    `by_length`: his rotation depends on the length of the text, so that he has to write it himself; `behind`: see
    `author_story`.
    """
    story = None
    if not isinstance(tokens, str) and tokens.shape == (len(prompts), count) and not by_length:
        story = confirmed_story(reference, prompts, tokens, progress)
    return author_story(reference, prompts, count, progress, behind) if story is None else story


def generated(decoder: Decoder, prompts: Sequence[Sequence[int]], count: int) -> Array | str:
    """`artifact_tokens`, or why they cannot be generated."""
    try:
        tokens = artifact_tokens(decoder, prompts, count)
    except RUN_ERRORS as problem:
        return f"generation does not run: {reason(problem)}"
    return tokens


def artifact_tokens(decoder: Decoder, prompts: Sequence[Sequence[int]], count: int) -> Array:
    """Greedy tokens [rows, count] of the artifact; no row ends early. Rows may come one after the other."""
    options = GenerationOptions(max_new_tokens=count, eos_token_ids=())
    steps = [step.tokens for step in generate(decoder, prompts, options)]
    texts = [[token for token in row if token is not None] for row in zip(*steps, strict=True)]
    longest = max(map(len, texts))
    return np.array([[*text, *[-1] * (longest - len(text))] for text in texts], np.int64)


def agreement(story: Story, tokens: Array, error: float) -> Agreement:
    """Compares an artifact's tokens with a story; `error` is the largest error of a logit."""
    equal, excused, parted = [], 0, []
    count = story.tokens.shape[1]
    for row, (want, got) in enumerate(zip(story.tokens, tokens, strict=True)):
        differs = np.flatnonzero(want != got) if len(got) == count else np.array([min(len(got), count - 1)])
        first = int(differs[0]) if len(differs) else count
        equal.append(first)
        if first == count:
            continue
        gap = float(story.gaps[row, first])
        if len(got) == count and gap <= 2 * error:
            excused += 1
        else:
            parted.append(f"prompt {row} at token {first}, where the reference's choice leads by {gap:.3g}")
    return Agreement(tuple(equal), excused, tuple(parted))


def generation_check(tokens: Array | str, story: Story, error: float, name: str) -> Check:
    """The gate: no row may part from the author's but at a tie. `tokens` are what was `generated`."""
    if isinstance(tokens, str):
        return broken(TIER, name, tokens)
    found, count = agreement(story, tokens, error), story.tokens.shape[1]
    detail = (
        f"{len(story.prompts)} prompts of {_lengths(story)} tokens, {count} new each; {found.excused} part at a tie"
    )
    if found.parted:
        detail += f"; {found.parted[0]}"
    return check(TIER, name, float(len(found.parted)), 0.0, "rows that part", detail)


def shipped_check(tokens: Array | str, story: Story, name: str) -> Check:
    """Reported, not gated: how long the texts stay the same with int8 activations."""
    if isinstance(tokens, str):
        return broken(TIER, name, tokens)
    found, count = agreement(story, tokens, 0.0), story.tokens.shape[1]
    same = sum(length == count for length in found.equal)
    detail = f"mean of the equal tokens at the start; {same} of {len(found.equal)} texts are the very same"
    return reported(TIER, name, float(np.mean(found.equal)), f"of {count} tokens", detail)


def _lengths(story: Story) -> str:
    lengths = [len(prompt) for prompt in story.prompts]
    return f"{min(lengths)} to {max(lengths)}"
