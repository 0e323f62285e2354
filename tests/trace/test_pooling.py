"""The pooling of sentence-transformers folders, against the formulas written once more in NumPy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from truecast.checkpoint.model import Checkpoint
from truecast.errors import InputError
from truecast.trace.pooling import read_pooling

TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
Array = np.ndarray[Any, np.dtype[Any]]


def folder(modules: list[dict[str, Any]], pooling: dict[str, Any] | None) -> Checkpoint:
    """A checkpoint whose modules.json and pooling are the given ones."""
    files: dict[str, Callable[[], bytes]] = {"modules.json": lambda: json.dumps(modules).encode()}
    if pooling is not None:
        files["1_Pooling/config.json"] = lambda: json.dumps(pooling).encode()
    return Checkpoint(Path("somewhere"), "safetensors", {}, {}, files)


def switched_on(*modes: str) -> dict[str, Any]:
    """The settings of a pooling as sentence-transformers writes them."""
    return {"word_embedding_dimension": 6, **{f"pooling_mode_{mode}": mode in modes for mode in MODES}}


TOKENS = np.random.default_rng(1).standard_normal((4, 5, 6)).astype(np.float32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 0]])


def rows(mask: Array) -> list[Array]:
    """The vectors of each text that count."""
    return [tokens[kept == 1] for tokens, kept in zip(TOKENS, mask, strict=True)]


FORMULAS: dict[str, Callable[[Array], Array]] = {
    "mean_tokens": lambda mask: np.stack([row.mean(0) for row in rows(mask)]),
    "mean_sqrt_len_tokens": lambda mask: np.stack([row.sum(0) / np.sqrt(len(row)) for row in rows(mask)]),
    "max_tokens": lambda mask: np.stack([row.max(0) for row in rows(mask)]),
    "cls_token": lambda mask: TOKENS[:, 0],
}


def pooled(modules: list[dict[str, Any]], settings: dict[str, Any], mask: Array = MASK) -> dict[str, Array]:
    finish = read_pooling(folder(modules, settings))
    assert finish is not None
    outputs = finish({"last_hidden_state": torch.from_numpy(TOKENS)}, {"attention_mask": torch.from_numpy(mask)})
    return {name: tensor.numpy() for name, tensor in outputs.items()}


@pytest.mark.parametrize("mode", FORMULAS)
def test_each_pooling_is_its_formula(mode: str) -> None:
    found = pooled([TRANSFORMER, POOLING], switched_on(mode))
    assert list(found) == ["last_hidden_state", "sentence_embedding"]
    np.testing.assert_array_equal(found["last_hidden_state"], TOKENS)
    np.testing.assert_allclose(found["sentence_embedding"], FORMULAS[mode](MASK), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["mean_tokens", "mean_sqrt_len_tokens", "max_tokens"])
def test_what_is_masked_does_not_count(mode: str) -> None:
    whole = pooled([TRANSFORMER, POOLING], switched_on(mode), np.ones_like(MASK))
    assert np.abs(whole["sentence_embedding"] - FORMULAS[mode](MASK))[1:].max() > 0.1


@pytest.mark.parametrize("name", ["mean", "max", "cls"])
def test_the_newer_form_of_the_settings_is_read(name: str) -> None:
    long = {"mean": "mean_tokens", "max": "max_tokens", "cls": "cls_token"}[name]
    found = pooled([TRANSFORMER, POOLING], {"embedding_dimension": 6, "pooling_mode": name})
    np.testing.assert_allclose(found["sentence_embedding"], FORMULAS[long](MASK), rtol=2e-6, atol=1e-6)


def test_a_last_step_makes_lengths_one() -> None:
    found = pooled([TRANSFORMER, POOLING, NORMALIZE], switched_on("mean_tokens"))["sentence_embedding"]
    mean = FORMULAS["mean_tokens"](MASK)
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean, axis=1, keepdims=True), rtol=2e-6, atol=1e-6)


def test_a_row_without_tokens_is_zero_and_not_nan() -> None:
    found = pooled([TRANSFORMER, POOLING], switched_on("mean_tokens"), np.zeros_like(MASK))
    np.testing.assert_array_equal(found["sentence_embedding"], np.zeros((4, 6)))


@pytest.mark.parametrize(
    ("modules", "settings"),
    [
        ([TRANSFORMER, POOLING], switched_on("mean_tokens", "cls_token")),
        ([TRANSFORMER, POOLING], switched_on("weightedmean_tokens")),
        ([TRANSFORMER, POOLING], switched_on()),
        ([TRANSFORMER, POOLING, DENSE], switched_on("mean_tokens")),
        ([TRANSFORMER | {"path": "0_Transformer"}, POOLING], switched_on("mean_tokens")),
    ],
)
def test_what_is_not_known_is_left_to_the_caller(modules: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    assert read_pooling(folder(modules, settings)) is None


def test_settings_that_are_missing_are_named() -> None:
    with pytest.raises(
        InputError, match=r"somewhere has no 1_Pooling/config\.json, which modules\.json names; download"
    ):
        read_pooling(folder([TRANSFORMER, POOLING], None))
