"""The steps behind the encoder of a sentence-transformers folder, against the formulas once more in NumPy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from truecast.checkpoint.model import Checkpoint
from truecast.errors import InputError
from truecast.trace.pooling import attach_steps, load_steps, needs_prompt_length, require_alone, with_steps

OLD, NEW = "sentence_transformers.models", "sentence_transformers.base.modules.dense"
TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": f"{OLD}.Transformer"}
MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
Array = np.ndarray[Any, np.dtype[Any]]
Settings = dict[str, Any]


def folder(steps: list[tuple[str, str, Settings | None]], **files: Any) -> Checkpoint:
    """A checkpoint whose modules.json lists (folder, class, settings)."""
    listed = [{"idx": i + 1, "name": str(i + 1), "path": path, "type": kind} for i, (path, kind, _) in enumerate(steps)]
    content: Settings = {"modules.json": [TRANSFORMER, *listed], **files}
    content |= {f"{path}/config.json": settings for path, _, settings in steps if settings is not None}
    made: dict[str, Callable[[], bytes]] = {
        name: (lambda value=value: json.dumps(value).encode()) for name, value in content.items()
    }
    return Checkpoint(Path("somewhere"), "safetensors", {}, {}, made)


def pooling(*modes: str, **more: Any) -> tuple[str, str, Settings]:
    """A pooling with the settings that sentence-transformers wrote until version 5."""
    switched = {f"pooling_mode_{mode}": mode in modes for mode in MODES}
    return "1_Pooling", f"{OLD}.Pooling", {"word_embedding_dimension": 6, **switched, **more}


TOKENS = np.random.default_rng(1).standard_normal((4, 5, 6)).astype(np.float32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 0]])
FIRST = [0, 0, 2, 0]


def rows(mask: Array) -> list[Array]:
    """The vectors of each text that count."""
    return [tokens[kept == 1] for tokens, kept in zip(TOKENS, mask, strict=True)]


def weighted(mask: Array) -> Array:
    """Weights grow from 1 at the first token of each text."""
    places = np.arange(5)[None] - np.array(FIRST)[:, None] + 1
    weights = (places * mask)[..., None].astype(np.float64)
    result: Array = (TOKENS * weights).sum(1) / weights.sum(1)
    return result


FORMULAS: dict[str, Callable[[Array], Array]] = {
    "mean_tokens": lambda mask: np.stack([row.mean(0) for row in rows(mask)]),
    "mean_sqrt_len_tokens": lambda mask: np.stack([row.sum(0) / np.sqrt(len(row)) for row in rows(mask)]),
    "max_tokens": lambda mask: np.stack([row.max(0) for row in rows(mask)]),
    "cls_token": lambda mask: np.stack([row[0] for row in rows(mask)]),
    "lasttoken": lambda mask: np.stack([row[-1] for row in rows(mask)]),
    "weightedmean_tokens": weighted,
}


def features(
    steps: list[tuple[str, str, Settings | None]], mask: Array = MASK, model: nn.Module | None = None, **inputs: Any
) -> dict[str, Array]:
    finish = attach_steps(model or nn.Module(), folder(steps), torch.float32)
    outputs = finish({"last_hidden_state": torch.from_numpy(TOKENS)}, {"attention_mask": torch.tensor(mask), **inputs})
    return {name: tensor.detach().numpy() for name, tensor in outputs.items()}


@pytest.mark.parametrize("mode", FORMULAS)
def test_each_pooling_is_its_formula(mode: str) -> None:
    found = features([pooling(mode)])
    assert list(found) == ["last_hidden_state", "sentence_embedding"]
    np.testing.assert_array_equal(found["last_hidden_state"], TOKENS)
    np.testing.assert_allclose(found["sentence_embedding"], FORMULAS[mode](MASK), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("mode", [mode for mode in FORMULAS if mode != "cls_token"])
def test_what_is_masked_does_not_count(mode: str) -> None:
    whole = features([pooling(mode)], np.ones_like(MASK))
    assert np.abs(whole["sentence_embedding"] - FORMULAS[mode](MASK))[1:].max() > 0.1


def test_several_poolings_are_concatenated_in_the_order_of_sentence_transformers() -> None:
    both = features([pooling("lasttoken", "mean_tokens", "cls_token")])["sentence_embedding"]
    order = ("cls_token", "mean_tokens", "lasttoken")
    np.testing.assert_allclose(both, np.concatenate([FORMULAS[m](MASK) for m in order], 1), rtol=2e-6, atol=1e-6)
    named = "1_Pooling", f"{OLD}.Pooling", {"embedding_dimension": 6, "pooling_mode": ["lasttoken", "cls"]}
    want = np.concatenate([FORMULAS["lasttoken"](MASK), FORMULAS["cls_token"](MASK)], 1)
    np.testing.assert_allclose(features([named])["sentence_embedding"], want)


def test_settings_that_switch_nothing_on_mean_the_mean() -> None:
    found = features([pooling()])["sentence_embedding"]
    np.testing.assert_allclose(found, FORMULAS["mean_tokens"](MASK), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("mode", FORMULAS)
def test_tokens_of_the_prompt_are_left_out_where_the_settings_say_so(mode: str) -> None:
    """The prompt's first token stands where the text begins, behind padding on the left."""
    lengths = torch.tensor([2, 1, 2, 0])
    without = MASK.copy()
    without[0, :2] = without[1, 0] = without[2, 2:4] = 0
    found = features([pooling(mode, include_prompt=False)], prompt_length=lengths)["sentence_embedding"]
    np.testing.assert_allclose(found, FORMULAS[mode](without), rtol=2e-6, atol=1e-6)
    assert needs_prompt_length(folder([pooling(mode, include_prompt=False)]))
    kept = features([pooling(mode)], prompt_length=lengths)["sentence_embedding"]
    np.testing.assert_allclose(kept, FORMULAS[mode](MASK), rtol=2e-6, atol=1e-6)
    assert not needs_prompt_length(folder([pooling(mode)]))


NORMALIZE = ("2_Normalize", f"{OLD}.Normalize", None)


def dense(**more: Any) -> tuple[str, str, Settings]:
    return "3_Dense", f"{NEW}.Dense", {"in_features": 6, "out_features": 4, "bias": True, **more}


def test_normalisation_may_stand_anywhere() -> None:
    model = nn.Module()
    found = features([pooling("mean_tokens"), NORMALIZE, dense()], model=model)["sentence_embedding"]
    mean = FORMULAS["mean_tokens"](MASK)
    layer: Any = model.get_submodule("3_Dense.linear")
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(found, np.tanh(unit @ weight.T + bias), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("named", "function"),
    [
        ("torch.nn.modules.linear.Identity", lambda x: x),
        (None, lambda x: x),
        ("torch.nn.modules.activation.ReLU", lambda x: np.maximum(x, 0)),
    ],
)
def test_a_dense_step_has_the_activation_and_the_residual_of_its_settings(
    named: str | None, function: Callable[[Array], Array]
) -> None:
    model = nn.Module()
    settings = {"activation_function": named, "bias": False, "use_residual": True}
    found = features([pooling("cls_token"), dense(**settings)], model=model)["sentence_embedding"]
    weights = {name: p.detach().numpy() for name, p in model.get_submodule("3_Dense").named_parameters()}
    assert set(weights) == {"linear.weight", "residual.weight"}
    cls = FORMULAS["cls_token"](MASK)
    want = function(cls @ weights["linear.weight"].T) + cls @ weights["residual.weight"].T
    np.testing.assert_allclose(found, want, rtol=2e-6, atol=1e-6)


def test_steps_of_late_interaction_work_on_every_token() -> None:
    model = nn.Module()
    pylate = "1_Dense", "pylate.models.Dense.Dense", {"in_features": 6, "out_features": 4, "bias": False}
    unit = "2_Normalize", f"{OLD}.Normalize", {"module_input_name": "token_embeddings"}
    pylate[2]["activation_function"] = "torch.nn.modules.linear.Identity"
    found = features([pylate, unit], model=model)
    assert list(found) == ["last_hidden_state", "token_embeddings"]
    layer: Any = model.get_submodule("1_Dense.linear")
    want = TOKENS @ layer.weight.detach().numpy().T
    want /= np.linalg.norm(want, axis=2, keepdims=True)
    np.testing.assert_allclose(found["token_embeddings"], want, rtol=3e-6, atol=1e-6)


def test_a_row_without_tokens_is_zero_and_not_nan() -> None:
    for mode in ("mean_tokens", "weightedmean_tokens", "lasttoken"):
        found = features([pooling(mode)], np.zeros_like(MASK))
        np.testing.assert_array_equal(found["sentence_embedding"], np.zeros((4, 6)))


@pytest.mark.parametrize(
    ("step", "named"),
    [
        (("1_CNN", f"{OLD}.CNN", {}), "lists CNN in 1_CNN; truecast knows Transformer"),
        (("1_LSTM", "sentence_transformers.sentence_transformer.modules.lstm.LSTM", {}), "lists LSTM in 1_LSTM"),
        (("1_Pooling", "custom_code.Pooling", {}), "lists custom_code.Pooling in 1_Pooling"),
        (pooling("cls_token", pooling_mode="median"), "step 1_Pooling pools by 'median'"),
        (dense(activation_function="somewhere.Swish"), "activation 'somewhere.Swish', which is none of torch.nn"),
        (("1_Pooling", f"{OLD}.Pooling", None), r"has no 1_Pooling/config\.json, which modules\.json names; download"),
    ],
)
def test_a_step_that_is_not_known_is_refused_by_name(step: tuple[str, str, Settings | None], named: str) -> None:
    with pytest.raises(InputError, match=named):
        features([step])


@pytest.mark.parametrize("kind", ["WordEmbeddings", "StaticEmbedding", "Router"])
def test_a_folder_that_begins_with_something_else_is_refused(kind: str) -> None:
    checkpoint = folder([])
    listed = json.dumps([{"idx": 0, "name": "0", "path": "", "type": f"{OLD}.{kind}"}]).encode()
    first = Checkpoint(checkpoint.path, "safetensors", {}, {}, {"modules.json": lambda: listed})
    with pytest.raises(InputError, match=f"does not begin with {kind}"):
        attach_steps(nn.Module(), first, torch.float32)


def test_steps_behind_something_else_than_hidden_states_are_refused() -> None:
    texts = {"text": {"method": "get_text_features", "method_output_name": None}}
    for settings in ({"transformer_task": "fill-mask"}, {"modality_config": texts}, {"modality_config": {"image": {}}}):
        checkpoint = folder([pooling("cls_token")], **{"sentence_bert_config.json": settings})
        with pytest.raises(InputError, match="truecast knows steps behind forward"):
            attach_steps(nn.Module(), checkpoint, torch.float32)


def test_a_head_with_a_step_behind_it_is_refused() -> None:
    require_alone(folder([]))
    with pytest.raises(InputError, match="lists Pooling in 1_Pooling"):
        require_alone(folder([pooling("cls_token")]))


def test_weights_of_steps_are_read_and_pickles_are_not(tmp_path: Path) -> None:
    checkpoint = folder([dense()])
    checkpoint = Checkpoint(tmp_path, "safetensors", {}, {}, checkpoint.side_files)
    (tmp_path / "3_Dense").mkdir()
    (tmp_path / "3_Dense" / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"3_Dense/pytorch_model\.bin is a pickle"):
        with_steps(checkpoint)
    model = nn.Module()
    attach_steps(model, checkpoint, torch.float32)
    (tmp_path / "3_Dense" / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"3_Dense has no tensor 'linear\.weight'; download the folder again"):
        load_steps(model, checkpoint)
