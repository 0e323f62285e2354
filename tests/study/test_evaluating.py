"""Scores over batches of unequal rows: padding counts for nothing, order is the file's, and errors are seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from truecast.errors import InputError
from truecast.study.data import Labels
from truecast.study.evaluating import Collected, collect, heads, likenesses, load, save
from truecast.study.feeds import Feeds, Tokens
from truecast.study.opening import Outputs

ROWS = [Tokens(tuple(range(1, size + 1)), (0,) * size) for size in (5, 1, 3, 2, 4, 2, 7)]
"""Rows 1 … size; their sum is size · (size + 1) / 2."""


class Summing:
    """Gives each row's sum and half of it, and one vector per token; padded places hold nonsense."""

    def __init__(self, noise: float = 0.0) -> None:
        self.noise, self.batches = noise, 0

    def prepare(self, feeds: Feeds) -> Callable[[], Any]:
        self.batches += 1
        ids, mask = feeds["input_ids"].astype(np.float32), feeds["attention_mask"]
        total = (ids * mask).sum(1)
        tokens = np.where(mask[..., None] == 1, np.stack((ids, np.ones_like(ids)), -1), 1e9)
        noise = self.noise * np.where(np.arange(ids.shape[1]) % 2, 1.0, -1.0)[None, :, None]
        return lambda: {
            "sums": np.stack((total, total / 2), 1),
            "tokens": (tokens + noise).astype(np.float32),
            "count": np.float32(len(ids)),
        }

    def named(self, result: Any) -> Outputs:
        return dict(result)


def test_rows_come_back_in_their_order() -> None:
    model = Summing()
    found = collect(model, ROWS, 3, 0)
    sizes = [len(row.ids) for row in ROWS]
    assert model.batches == 3
    assert set(found) == {"sums", "tokens"}
    assert found["sums"].vectors[:, 0].tolist() == [size * (size + 1) / 2 for size in sizes]
    assert found["tokens"].vectors[:, 0].tolist() == pytest.approx([(size + 1) / 2 for size in sizes])
    assert [len(tokens) for tokens in found["tokens"].tokens] == sizes


def test_the_batch_makes_no_difference() -> None:
    one, other = collect(Summing(), ROWS, 1, 9), collect(Summing(), ROWS, 7, 0)
    for likeness in likenesses(one, other)[0]:
        assert likeness.lowest_cosine == pytest.approx(1.0)
        assert likeness.spearman == pytest.approx(1.0)


def test_errors_that_cancel_out_in_the_mean_are_seen_in_the_tokens() -> None:
    reference, noisy = collect(Summing(), ROWS, 4, 0), collect(Summing(2.0), ROWS, 4, 0)
    found = {one.output: one for one in likenesses(noisy, reference)[0]}
    assert found["sums"].lowest_cosine == pytest.approx(1.0)
    assert found["tokens"].lowest_cosine is not None
    assert found["tokens"].lowest_cosine < 0.9


def test_outputs_survive_the_file(tmp_path: Path) -> None:
    found = collect(Summing(), ROWS, 3, 0)
    save(found, tmp_path / "reference.npz")
    again = load(tmp_path / "reference.npz")
    assert set(again) == set(found)
    assert np.array_equal(again["sums"].vectors, found["sums"].vectors)
    for left, right in zip(again["tokens"].tokens, found["tokens"].tokens, strict=True):
        assert np.array_equal(left, right)
    assert [path.name for path in tmp_path.iterdir()] == ["reference.npz"]


def collected(values: list[list[float]]) -> Collected:
    return Collected(np.array(values, dtype=np.float32))


def test_heads_are_scored_each_by_its_own_labels() -> None:
    found = {"topic": collected([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), "tone": collected([[0, 1], [1, 0], [1, 0]])}
    reference = {**found, "topic": collected([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])}
    labels = {"topic": Labels(np.array([0, 1, 1])), "tone": Labels(np.array([1, 0, 0]))}
    topic, tone = heads(found, labels, reference)
    assert (topic.accuracy, topic.agreement) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert topic.macro_f1 == pytest.approx(2 / 3)
    assert (tone.accuracy, tone.macro_f1, tone.agreement) == (1.0, 1.0, 1.0)


def test_scores_are_ranked() -> None:
    found = {"score": collected([[0.1], [0.9], [0.5]])}
    (head,) = heads(found, {"score": Labels(np.array([1.0, 3.0, 2.0]))}, found)
    assert head.spearman == pytest.approx(1.0)
    assert head.accuracy is None


@pytest.mark.parametrize(
    ("name", "values", "labels", "sentence"),
    [
        ("logit", [[1, 2]], [0], "no output 'logit' for data.labels; did you mean 'logits'?"),
        ("logits", [[1, 2]], [2], "go up to class 2, but the output has 2 classes"),
        ("logits", [[1, 2]], [0.5], "are scores, but the output has 2 values for a row"),
    ],
)
def test_labels_that_do_not_fit_the_output(
    name: str, values: list[list[float]], labels: list[float], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence.replace("?", r"\?")):
        heads({"logits": collected(values)}, {name: Labels(np.array(labels))}, {})


def test_labels_of_rows_do_not_fit_tokens() -> None:
    found = collect(Summing(), ROWS, 4, 0)
    with pytest.raises(InputError, match="a vector for every token"):
        heads(found, {"tokens": Labels(np.zeros(len(ROWS), np.int64))}, found)


def test_missing_outputs_are_named_and_none_at_all_is_an_error() -> None:
    found = collect(Summing(), ROWS, 4, 0)
    shared, missing = likenesses({"sums": found["sums"]}, found)
    assert [one.output for one in shared] == ["sums"]
    assert missing == ("tokens",)
    with pytest.raises(InputError, match="none of the outputs"):
        likenesses({"other": found["sums"]}, found)
    with pytest.raises(InputError, match=r"shape \[1, 2\] over all rows, not \[7, 2\]"):
        likenesses({"sums": collected([[1, 2]])}, found)


def test_nan_has_no_cosine() -> None:
    (found,), _ = likenesses({"x": collected([[1, np.nan], [1, 2]])}, {"x": collected([[1, 2], [1, 2]])})
    assert found.cosine is None
    assert found.lowest_cosine is None
