"""Tier 4: what counts as the same text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.proof.conftest import Artifact
from tests.proof.planting import manifest_of
from tests.tiny import stored_model
from truecast.checkpoint import open_checkpoint
from truecast.proof.generation import (
    Story,
    agreement,
    author_story,
    confirmed_story,
    generated,
    generation_check,
    new_tokens,
    shipped_check,
)
from truecast.proof.prompts import PROMPTS, TEXTS, prompt_tokens, text_tokens
from truecast.proof.reference import Reference
from truecast.proof.sessions import open_decoder
from truecast.runtime.generate import GenerationOptions, generate

CASE = "gemma3_text"


def story(gap: float = 1.0) -> Story:
    tokens = np.arange(8).reshape(2, 4)
    return Story([[1], [2, 3]], tokens, np.full(tokens.shape, gap))


def test_equal_texts_agree() -> None:
    found = agreement(story(), story().tokens, 0.1)
    assert (found.equal, found.excused, found.parted) == ((4, 4), 0, ())


def test_a_difference_is_excused_only_at_a_tie() -> None:
    other = story().tokens.copy()
    other[1, 2] = 99
    assert agreement(story(gap=0.15), other, 0.1).excused == 1
    found = agreement(story(gap=0.25), other, 0.1)
    assert found.excused == 0 and found.equal == (4, 2)
    assert "prompt 1 at token 2" in found.parted[0]


def test_what_follows_a_difference_is_not_compared() -> None:
    other = story().tokens.copy()
    other[0, 1:] = 99
    assert agreement(story(gap=0.1), other, 0.1).excused == 1


def test_a_text_too_short_is_not_excused() -> None:
    assert len(agreement(story(gap=0.0), story().tokens[:, :3], 1.0).parted) == 2


def test_the_author_and_the_artifact_tell_the_same_story(made: Artifact) -> None:
    folder = made(CASE, "fp32")
    info = manifest_of(folder).graph
    reference = Reference.build(open_checkpoint(manifest_of(folder).source.path))
    reference.load_checkpoint()
    prompts, real = prompt_tokens(folder, 300)
    assert real and len(prompts) == len(PROMPTS) >= 8
    told = author_story(reference, prompts, 12)
    tokens = generated(open_decoder(folder, info), prompts, 12)
    assert generation_check(tokens, told, 1e-4, "n").passed
    assert shipped_check(tokens, told, "n").measured == 12
    confirmed = confirmed_story(reference, prompts, told.tokens)
    assert confirmed is not None and (confirmed.tokens == told.tokens).all()
    np.testing.assert_allclose(confirmed.gaps, told.gaps, atol=1e-5)
    told.tokens[3, 5] += 1
    told.gaps[3, 5] = 2.0
    assert confirmed_story(reference, prompts, told.tokens) is None
    check = generation_check(tokens, told, 1e-4, "n")
    assert not check.passed and "prompt 3 at token 5" in check.detail


@pytest.mark.parametrize("place", [(0, 0), (7, 11)])
def test_the_first_and_the_last_token_must_be_the_authors_own(place: tuple[int, int], made: Artifact) -> None:
    folder = made(CASE, "fp32")
    reference = Reference.build(open_checkpoint(manifest_of(folder).source.path))
    reference.load_checkpoint()
    prompts, _ = prompt_tokens(folder, 300)
    tokens = author_story(reference, prompts, 12).tokens
    tokens[place] = (tokens[place] + 1) % 300
    assert confirmed_story(reference, prompts, tokens) is None


def test_what_cannot_be_generated_fails() -> None:
    check = generation_check("generation does not run: why", story(), 1.0, "n")
    assert not check.passed and check.detail == "generation does not run: why"
    assert not shipped_check("generation does not run: why", story(), "n").passed


@pytest.mark.parametrize(("context", "count"), [(None, 64), (1000, 64), (50, 41), (5, 1)])
def test_no_more_is_generated_than_the_context_takes(context: int | None, count: int) -> None:
    assert new_tokens([[1] * 9, [1]], context) == count


def test_without_a_tokenizer_tokens_are_random_and_of_unequal_lengths(tmp_path: Path) -> None:
    prompts, real = prompt_tokens(tmp_path, 50)
    assert not real and len({len(prompt) for prompt in prompts}) > 4
    assert all(0 <= token < 50 for prompt in prompts for token in prompt)
    assert prompts == prompt_tokens(tmp_path, 50)[0]
    assert text_tokens(tmp_path, 50) == ()


def test_a_tokenizer_beyond_the_vocabulary_is_not_used(made: Artifact) -> None:
    folder = made(CASE, "fp32")
    assert len(text_tokens(folder, 300)) == len(TEXTS)
    assert text_tokens(folder, 100) == () and not prompt_tokens(folder, 100)[1]


LONGROPE, BEHIND = "phi3_longrope", 48


@pytest.mark.parametrize(("length", "chunk"), [(40, 512), (47, 16), (48, 512), (60, 16)])
def test_behind_longropes_threshold_the_text_is_that_of_transformers_own_generate(
    length: int, chunk: int, made: Artifact
) -> None:
    folder = made(LONGROPE, "fp32")
    manifest = manifest_of(folder)
    assert manifest.graph.restarts_behind == BEHIND
    prompt = np.random.default_rng(length).integers(0, 256, length).tolist()
    reference = Reference.build(open_checkpoint(manifest.source.path))
    reference.load_checkpoint()
    model = stored_model(Path(manifest.source.path))
    want = model.generate(torch.tensor([prompt]), max_new_tokens=14, do_sample=False, eos_token_id=None)[0, length:]
    options = GenerationOptions(14, eos_token_ids=(), prefill_chunk=chunk)
    got = [step.tokens[0] for step in generate(open_decoder(folder, manifest.graph), [prompt], options)]
    assert got == want.tolist()
    assert author_story(reference, [prompt, prompt], 14, None, BEHIND).tokens.tolist() == [got, got]


def test_a_text_that_goes_on_with_its_cache_is_another_one(made: Artifact) -> None:
    """Guards the test above, and shows that the proof notices a runtime that does not begin again."""
    folder = made(LONGROPE, "fp32")
    info = manifest_of(folder).graph
    prompts = [np.random.default_rng(length).integers(0, 256, length).tolist() for length in (40, 44, 47)]
    reference = Reference.build(open_checkpoint(manifest_of(folder).source.path))
    reference.load_checkpoint()
    told = author_story(reference, prompts, 14, None, BEHIND)
    assert generation_check(generated(open_decoder(folder, info), prompts, 14), told, 1e-4, "n").passed
    other = open_decoder(folder, info.model_copy(update={"restarts_behind": None}))
    assert not generation_check(generated(other, prompts, 14), told, 1e-4, "n").passed
