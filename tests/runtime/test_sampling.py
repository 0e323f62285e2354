"""Sampling against a plain sort, by the distribution it draws from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from truecast.errors import InputError, TruecastError
from truecast.runtime.sampling import BLOCK, Sampler, Sampling, choose_token, largest

DRAWS = 4000


def distribution(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The probabilities that transformers' warpers give: temperature, top-k, top-p."""
    order = np.argsort(-logits, kind="stable")
    scores = np.exp((logits[order].astype(np.float64) - logits.max()) / sampling.temperature)
    if sampling.top_k:
        scores[sampling.top_k :] = 0
    scores /= scores.sum()
    scores[np.cumsum(scores) - scores >= sampling.top_p] = 0
    probabilities = np.zeros(len(logits))
    probabilities[order] = scores / scores.sum()
    return probabilities


@pytest.mark.parametrize("top_k", [0, 3, 40, 900])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 0.02])
@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_draws_follow_the_distribution_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    sampling = Sampling(temperature, top_k, top_p, seed=7)
    logits = np.random.default_rng(3).standard_normal(1000).astype(np.float32) * 3
    expected = distribution(logits, sampling)
    random = np.random.default_rng(11)
    counts = np.bincount([choose_token(logits, sampling, random) for _ in range(DRAWS)], minlength=len(logits))
    assert counts[expected == 0].sum() == 0
    spread = np.sqrt(expected * (1 - expected) / DRAWS) + 1 / DRAWS
    assert np.abs(counts / DRAWS - expected).max() < (5 * spread).max()


def test_equal_weights_at_the_edge_of_the_nucleus_keep_the_first() -> None:
    logits = np.zeros(10, np.float32)
    random = np.random.default_rng(0)
    drawn = {choose_token(logits, Sampling(1.0, top_p=0.35), random) for _ in range(300)}
    assert drawn == {0, 1, 2, 3}


@pytest.mark.parametrize("top_k", [0, 4])
def test_a_nucleus_ends_where_the_mass_is_reached_exactly(top_k: int) -> None:
    logits = np.where(np.arange(8) < 4, 0, -np.inf).astype(np.float32)
    random = np.random.default_rng(0)
    assert {choose_token(logits, Sampling(1.0, top_k, 0.5), random) for _ in range(200)} == {0, 1}


class Fixed:
    """A source of randomness that always gives the same number."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


@pytest.mark.parametrize("top_p", [1.0, 0.99])
@pytest.mark.parametrize(("draw", "token"), [(0.0, 2), (np.nextafter(1, 0), 400)])
def test_the_ends_of_the_draw_are_tokens_with_weight(top_p: float, draw: float, token: int) -> None:
    logits = np.full(600, -np.inf, np.float32)
    logits[[2, 150, 400]] = [0.0, 0.1, 0.2]
    assert choose_token(logits, Sampling(1.0, top_p=top_p), Fixed(draw)) == token  # type: ignore[arg-type]


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = np.array([[1, 5, 5, 0], [2, 1, 1, 1]], np.float32)
    assert Sampler(Sampling(), 2).choose(logits) == [1, 0]


def test_a_tiny_temperature_is_greedy() -> None:
    logits = np.array([[1, 1.001, -1e30]], np.float32)
    assert {Sampler(Sampling(1e-30, seed=s), 1).choose(logits)[0] for s in range(20)} == {1}


@given(
    st.integers(1, 700),
    arrays(np.float32, st.integers(1, 9 * BLOCK + 5), elements=st.sampled_from(np.linspace(-3, 3, 50).astype("f4"))),
)
@settings(max_examples=80, deadline=None)
def test_the_largest_are_those_of_a_full_sort(count: int, values: np.ndarray) -> None:
    count = min(count, len(values))
    ids = largest(values, count)
    assert len(set(ids.tolist())) == count
    np.testing.assert_array_equal(values[ids], np.sort(values)[::-1][:count])


def test_a_seed_repeats_the_choices_and_another_does_not() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 500)).astype(np.float32)

    def choices(seed: int) -> list[list[int]]:
        sampler = Sampler(Sampling(1.0, seed=seed), 3)
        return [sampler.choose(logits) for _ in range(20)]

    assert choices(5) == choices(5)
    assert choices(5) != choices(6)


def test_rows_of_equal_logits_draw_independently() -> None:
    sampler = Sampler(Sampling(1.0, seed=1), 2)
    logits = np.zeros((2, 500), np.float32)
    assert any(len(set(sampler.choose(logits))) == 2 for _ in range(5))


def test_a_row_draws_the_same_in_a_larger_batch() -> None:
    logits = np.random.default_rng(0).standard_normal((1, 500)).astype(np.float32)
    alone, first = Sampler(Sampling(1.0, seed=9), 1), Sampler(Sampling(1.0, seed=9), 4)
    for _ in range(10):
        assert alone.choose(logits)[0] == first.choose(np.repeat(logits, 4, axis=0))[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(bad: float, temperature: float) -> None:
    logits = np.zeros((2, 300), np.float32)
    logits[1, 17] = bad
    with pytest.raises(TruecastError, match="not finite"):
        Sampler(Sampling(temperature), 2).choose(logits)


def test_masked_tokens_are_never_drawn() -> None:
    logits = np.full(300, -np.inf, np.float32)
    logits[[4, 299]] = 0
    random = np.random.default_rng(0)
    assert {choose_token(logits, Sampling(1.0), random) for _ in range(100)} == {4, 299}


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1), ("seed", -1)],
)
def test_options_outside_their_range_are_named(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"^{name} is "):
        Sampling(**{name: value})  # type: ignore[arg-type]
