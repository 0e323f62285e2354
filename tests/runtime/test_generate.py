"""Generation: a batch of unequal prompts gives what each prompt gives alone, on every kind of graph."""

from collections.abc import Sequence

import numpy as np
import pytest
from onnxruntime import IOBinding

from tests.runtime.conftest import OpenDecoder
from tests.runtime.graphs import CONTEXT, VOCAB
from truecast.errors import InputError
from truecast.runtime.decoder import Decoder
from truecast.runtime.generate import Finish, GenerationOptions, generate
from truecast.runtime.sampling import Sampling

NEW = 30
PROMPTS = [np.random.default_rng(seed).integers(0, VOCAB, n).tolist() for seed, n in enumerate((3, 17, 8, 1))]


def rows(decoder: Decoder, prompts: Sequence[Sequence[int]], options: GenerationOptions) -> list[list[int]]:
    """The tokens of every row, in the order of the prompts."""
    found: list[list[int]] = [[] for _ in prompts]
    for step in generate(decoder, prompts, options):
        for row, token in zip(found, step.tokens, strict=True):
            if token is not None:
                row.append(token)
    return found


def by_hand(decoder: Decoder, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens by running the whole text anew for every token, without a cache."""
    text = list(prompt)
    for _ in range(count):
        text.append(int(decoder.step(decoder.new_cache(1), np.array([text]))[0, -1].argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("padding", ["any", "right"])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("chunk", [512, 5])
def test_a_batch_gives_what_its_prompts_give_alone(
    open_decoder: OpenDecoder, padding: str, in_place: bool, chunk: int
) -> None:
    decoder, options = open_decoder(padding, in_place), GenerationOptions(NEW, prefill_chunk=chunk)
    assert rows(decoder, PROMPTS, options) == [by_hand(decoder, prompt, NEW) for prompt in PROMPTS]


def test_the_expected_tokens_vary(open_decoder: OpenDecoder) -> None:
    """Guards the test above: a graph that always says the same would pass it."""
    found = [by_hand(open_decoder(), prompt, NEW) for prompt in PROMPTS]
    assert all(len(set(row)) > 5 for row in found)
    assert len({tuple(row) for row in found}) == len(found)


def test_prompts_of_one_length_share_a_prefill(open_decoder: OpenDecoder) -> None:
    prompts, options = [prompt[:1] * 6 for prompt in PROMPTS], GenerationOptions(NEW)
    for padding in ("any", "right"):
        decoder = open_decoder(padding)
        assert rows(decoder, prompts, options) == [by_hand(decoder, prompt, NEW) for prompt in prompts]


Run = tuple[tuple[int, ...], np.ndarray]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The shape of the token ids and the mask of every run that generation makes."""
    seen: list[Run] = []
    bind = IOBinding.bind_cpu_input

    def watched(self: IOBinding, name: str, array: np.ndarray) -> None:
        if name == "input_ids":
            seen.append((array.shape, np.ones((1, 1))))
        if name == "attention_mask":
            seen.append((seen[-1][0], array))
        bind(self, name, array)

    monkeypatch.setattr(IOBinding, "bind_cpu_input", watched)
    return seen


def test_no_run_is_longer_than_the_chunk(open_decoder: OpenDecoder, runs: list[Run]) -> None:
    rows(open_decoder(), PROMPTS, GenerationOptions(3, prefill_chunk=5))
    assert max(length for (_, length), _ in runs) == 5


@pytest.mark.parametrize(("padding", "falling"), [("right", True), ("any", False)])
def test_masks_have_their_ones_where_the_contract_wants_them(
    open_decoder: OpenDecoder, runs: list[Run], padding: str, falling: bool
) -> None:
    rows(open_decoder(padding), PROMPTS, GenerationOptions(3))
    masks = [mask if falling else mask[:, ::-1] for _, mask in runs]
    assert any((mask == 0).any() for mask in masks)
    assert all((np.diff(mask) <= 0).all() for mask in masks)


def first_repeat_free(tokens: list[int]) -> int:
    """An index from 3 on whose token has not come before."""
    return next(at for at in range(3, len(tokens)) if tokens[at] not in tokens[:at])


def test_a_row_ends_at_an_end_token_and_the_others_go_on(open_decoder: OpenDecoder) -> None:
    decoder = open_decoder()
    alone = by_hand(decoder, PROMPTS[1], NEW)
    at = first_repeat_free(alone)
    options = GenerationOptions(NEW, eos_token_ids=(alone[at],))
    found = rows(decoder, PROMPTS, options)
    assert found[1] == alone[: at + 1]
    assert found == [rows(decoder, [prompt], options)[0] for prompt in PROMPTS]
    assert any(len(row) == NEW for row in found)


def test_the_end_tokens_of_the_manifest_are_the_default(open_decoder: OpenDecoder) -> None:
    plain = open_decoder()
    end = by_hand(plain, PROMPTS[1], NEW)[4]
    decoder = open_decoder("any", True, (end,))
    steps = list(generate(decoder, [PROMPTS[1]], GenerationOptions(NEW)))
    assert (steps[-1].tokens, steps[-1].finish) == ((end,), (Finish.END,))
    assert len(rows(decoder, [PROMPTS[1]], GenerationOptions(NEW, eos_token_ids=()))[0]) == NEW


def test_the_last_token_says_why_its_row_ended(open_decoder: OpenDecoder) -> None:
    finishes = [step.finish for step in generate(open_decoder(), PROMPTS[:2], GenerationOptions(3))]
    assert finishes == [(None, None), (None, None), (Finish.LENGTH, Finish.LENGTH)]


@pytest.mark.parametrize("length", [CONTEXT, CONTEXT - 4])
def test_generation_stops_where_the_context_is_full(open_decoder: OpenDecoder, length: int) -> None:
    steps = list(generate(open_decoder(), [[1] * length], GenerationOptions(50)))
    assert len(steps) == CONTEXT - length + 1
    assert steps[-1].finish == (Finish.LENGTH,)


def test_sampling_repeats_with_a_seed(open_decoder: OpenDecoder) -> None:
    decoder, options = open_decoder(), GenerationOptions(NEW, Sampling(1.0, 20, 0.95, seed=4))
    assert rows(decoder, PROMPTS, options) == rows(decoder, PROMPTS, options)
    other = GenerationOptions(NEW, Sampling(1.0, 20, 0.95, seed=5))
    assert rows(decoder, PROMPTS, options) != rows(decoder, PROMPTS, other)


@pytest.mark.parametrize("padding", ["any", "right"])
@pytest.mark.parametrize("in_place", [True, False])
def test_every_kind_of_graph_draws_the_same_tokens(open_decoder: OpenDecoder, padding: str, in_place: bool) -> None:
    options = GenerationOptions(NEW, Sampling(1.0, 20, 0.95, seed=4))
    expected = rows(open_decoder(), PROMPTS, options)
    assert rows(open_decoder(padding, in_place), PROMPTS, options) == expected


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompt"),
        ([[1], []], "Prompt 1 has no tokens"),
        ([[1] * (CONTEXT + 1)], f"Prompt 0 has {CONTEXT + 1} tokens, above the model's context of {CONTEXT}"),
        ([[1, VOCAB]], f"outside the model's vocabulary of {VOCAB}"),
        ([[-1]], "token ids from -1"),
    ],
)
def test_prompts_that_cannot_be_run_are_refused_before_anything_runs(
    open_decoder: OpenDecoder, prompts: list[list[int]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        generate(open_decoder(), prompts)


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"prefill_chunk": 0}])
def test_counts_below_one_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="must be 1 or more"):
        GenerationOptions(**options)  # type: ignore[arg-type]
