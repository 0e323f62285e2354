"""The grid: what it must hold, and what it may leave out only with a note."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from truecast.proof.points import (
    ACROSS,
    BATCHES,
    EDGES,
    FAR,
    NEWS,
    PASTS,
    Limits,
    Point,
    config_thresholds,
    config_windows,
    grid,
    stretches,
)

LIMITS = Limits("any", True, 300, 128, (8,), (40,), 10**6, 4, ())


def named(limits: Limits) -> dict[str, Point]:
    return {point.name: point for point in grid(limits)[0]}


def test_every_size_of_batch_step_and_past_is_there() -> None:
    compared = set(conditions(LIMITS))
    assert compared >= set(product(BATCHES, NEWS, PASTS))


def conditions(limits: Limits) -> Iterator[tuple[int, int, int]]:
    """(batch, new, past) of every run without padding that is compared at all its positions."""
    for point in named(limits).values():
        for run in point.runs() if point.mask.all() else ():
            if run.kept == slice(run.start, run.end):
                yield point.batch, run.end - run.start, run.start


@pytest.mark.parametrize("context", [10, 30, 68, 71, 72, 128])
def test_a_short_context_leaves_no_size_out_that_fits(context: int) -> None:
    compared = set(conditions(replace(LIMITS, context=context)))
    assert compared >= {(b, n, p) for b, n, p in product(BATCHES, NEWS, PASTS) if n + p <= context}


def test_an_operator_that_takes_one_row_after_a_past_gets_one_and_the_note_says_so() -> None:
    points, notes = grid(replace(LIMITS, many_after_past=False))
    names = {point.name for point in points}
    assert "batch 2, new 17, past 11" not in names
    assert {"batch 1, new 17, past 11", "batch 3, new 1, past 11", "batch 2, new 64, past 0"} <= names
    assert any("one row" in note for note in notes)


def test_masks_of_every_kind_are_there_for_any_contract() -> None:
    points = named(LIMITS)
    kinds = {
        "left padding",
        "right padding",
        "holes",
        "left, right and holes in one batch",
        "holes in a past, then 9 new",
    }
    assert kinds <= set(points)
    assert not points["left padding"].mask[1, 0] and points["left padding"].mask[:, -1].all()
    assert not points["right padding"].mask[1, 16] and points["right padding"].mask[:, 0].all()
    assert all(0 < row[:17].sum() < 17 for row in points["holes"].mask)


def test_the_contract_right_gets_right_padding_only_and_the_note_says_so() -> None:
    points, notes = grid(replace(LIMITS, padding="right"))
    for point in points:
        first = point.mask[:, : point.pieces[0]]
        assert (np.sort(first, axis=1)[:, ::-1] == first).all(), point.name
    assert any("contract" in note for note in notes)
    assert "right padding" in {point.name for point in points}


def test_windows_and_thresholds_are_crossed_at_once_and_step_by_step() -> None:
    points = named(LIMITS)
    crossing = [point for key, point in points.items() if key.startswith("rotary threshold 40")]
    assert any(point.pieces[0] == 45 for point in crossing)
    assert any(point.pieces[0] < 40 < sum(point.pieces) and 1 in point.pieces for point in crossing)
    far_window = named(replace(LIMITS, context=None, windows=(2000,)))[
        "window 2000 crossed by several, then one by one"
    ]
    for point, window in ((points["128 positions"], 8), (far_window, 2000)):
        ends = np.cumsum(point.pieces)
        across = int(np.searchsorted(ends, window - 2))
        assert ends[across] == window - 2 and point.pieces[across + 1 : across + 4] == ACROSS


def test_positions_far_behind_are_reached_in_small_runs_at_little_cost() -> None:
    point = named(replace(LIMITS, context=None))[f"{FAR} positions"]
    ends = np.cumsum(point.pieces)
    for edge in EDGES:
        assert {edge - 2, edge + 2, edge + 3, edge + 4} <= set(ends)
    assert len(point.pieces) < 20 and all(run.kept.stop - run.kept.start <= 16 for run in point.runs())
    assert named(LIMITS)["128 positions"].pieces[-3:] == (114, 1, 1)


def test_a_model_too_large_for_far_positions_says_so() -> None:
    points, notes = grid(replace(LIMITS, context=None, weights=10**10, windows=()))
    assert "250 positions" in {point.name for point in points}
    assert any("longer than 250 positions" in note for note in notes)


def test_a_batch_of_more_rows_than_any_small_one_is_there() -> None:
    point = named(LIMITS)["batch 33"]
    assert point.batch == 33 and len(np.unique(point.tokens, axis=0)) == 33


@pytest.mark.parametrize(("windows", "longest"), [((8,), 8), ((), 128)])
@pytest.mark.parametrize("padding", ["any", "right"])
def test_padding_is_longer_than_a_window(windows: tuple[int, ...], longest: int, padding: str) -> None:
    point = named(replace(LIMITS, windows=windows, padding=padding, context=None))[f"padding of {longest + 2}"]
    first = point.mask[:, : point.pieces[0]]
    assert (1 - first).sum() == longest + 2
    assert first[0, 0] == (padding == "right") and point.mask[:, point.pieces[0] :].all()


@pytest.mark.parametrize("context", [2, 5, 16, 19])
def test_a_context_shorter_than_the_padded_points_or_the_text_shortens_them(context: int) -> None:
    points = named(replace(LIMITS, context=context, windows=(), thresholds=()))
    assert {"left padding", "right padding", "text", f"{context} positions"} <= set(points)
    assert all(point.mask.sum(1).min() > 0 for point in points.values())


@pytest.mark.parametrize("limits", [replace(LIMITS, windows=(8192,)), replace(LIMITS, windows=(4000,), weights=10**10)])
def test_a_window_too_far_is_left_out_with_a_note(limits: Limits) -> None:
    points, notes = grid(replace(limits, context=None))
    assert not [point for point in points if point.name.startswith("window")]
    assert any("attention window" in note for note in notes)


def test_points_beyond_the_context_are_left_out_with_a_note() -> None:
    points, notes = grid(replace(LIMITS, context=32))
    assert max(point.tokens.shape[1] for point in points) <= 32
    assert any("context of 32" in note for note in notes)


def test_tokens_differ_between_rows_and_from_the_trace() -> None:
    tokens = named(LIMITS)["batch 2, new 64, past 0"].tokens
    assert len(np.unique(tokens)) > 50
    assert not (tokens[0] == tokens[1]).all()


def test_text_stands_in_the_text_point_and_its_absence_is_noted() -> None:
    texts = tuple(tuple(range(row, row + 80)) for row in range(3))
    points, notes = grid(replace(LIMITS, texts=texts))
    assert next(point for point in points if point.text).tokens[2, 0] == 2
    assert not any("random" in note for note in notes)
    assert any("random" in note for note in grid(LIMITS)[1])


def test_runs_cover_a_point_and_compare_what_they_should() -> None:
    point = named(LIMITS)["batch 2, new 17, past 11"]
    first, second = point.runs()
    assert (first.start, first.end, first.kept) == (0, 11, slice(10, 11))
    assert (second.start, second.end, second.kept) == (11, 28, slice(11, 28))


def test_thresholds_and_windows_come_from_the_configuration() -> None:
    dynamic = {"max_position_embeddings": 40, "rope_parameters": {"rope_type": "dynamic"}}
    long = {"rope_parameters": {"full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 48}}}
    assert config_thresholds(dynamic) == (40,) and stretches(dynamic)
    assert config_thresholds(long) == (48,) and not stretches(long)
    assert config_thresholds({"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 32}}) == ()
    assert config_windows({"sliding_window": 8}) == (8,) and config_windows({"sliding_window": None}) == ()
