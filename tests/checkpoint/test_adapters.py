"""LoRA adapters: what they add to a weight, by the formula; what is not known of them is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.adapters import factors, random_array, write_adapter
from tests.checkpoint.gguf.files import close
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.adapters import open_adapter
from truecast.checkpoint.model import Array, StoredTensor
from truecast.checkpoint.safetensors_format import read_file
from truecast.errors import InputError

MODULE = "layers.1.mlp.up"
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"
DELTA = factors(MODULE, 10, 6)
CLOSE = 1e-5
"""Sums of four products in float32."""


def base(folder: Path, array: Array, name: str = "w") -> StoredTensor:
    save_file({name: array}, folder / "base.safetensors")
    return read_file(folder / "base.safetensors")[name]


def changed(folder: Path, array: Array, parameter: str = f"{MODULE}.weight", transposed: bool = False) -> Array:
    """The base's tensor after all changes of a parameter, read in two runs of rows."""
    tensor = base(folder, array)
    for change in open_adapter(folder).changes[parameter]:
        tensor = change.onto(tensor, transposed)
    assert tensor.shape == array.shape
    return np.concatenate([tensor.rows(0, 3), tensor.rows(3, None)])


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 4.0),
        ({"use_rslora": True}, 8.0),
        ({"alpha_pattern": {"up": 2}}, 0.5),
        ({"alpha_pattern": {"down": 2}, "lora_alpha": 2}, 0.5),
        ({"r": 8, "rank_pattern": {r"layers\.1\.mlp\.up": 4}}, 4.0),
        ({"target_modules": "all-linear"}, 4.0),
        ({"target_modules": r".*\.up"}, 4.0),
        ({"target_modules": ["up"], "layers_to_transform": [1], "layers_pattern": "layers"}, 4.0),
        ({"target_modules": ["up"], "layers_to_transform": 1}, 4.0),
        ({"lora_dropout": 0.1, "peft_version": "9", "task_type": "CAUSAL_LM", "megatron_core": "megatron.core"}, 4.0),
    ],
)
def test_the_product_is_added_with_its_scale(settings: dict[str, Any], scale: float, tmp_path: Path) -> None:
    weight = random_array(10, 6, seed=7)
    write_adapter(tmp_path, DELTA, **settings)
    np.testing.assert_allclose(changed(tmp_path, weight), weight + scale * DELTA[B] @ DELTA[A], rtol=CLOSE, atol=CLOSE)


def test_a_weight_that_is_held_the_other_way_round_gets_the_product_turned(tmp_path: Path) -> None:
    weight = random_array(6, 10, seed=7)
    write_adapter(tmp_path, DELTA, fan_in_fan_out=True)
    want = weight + 4 * (DELTA[B] @ DELTA[A]).T
    np.testing.assert_allclose(changed(tmp_path, weight, transposed=True), want, rtol=CLOSE, atol=CLOSE)


def test_a_table_of_embeddings_gets_the_product_turned(tmp_path: Path) -> None:
    table, a, b = random_array(11, 6, seed=7), random_array(4, 11), random_array(6, 4, seed=1)
    write_adapter(tmp_path, {"embed.lora_embedding_A": a, "embed.lora_embedding_B": b})
    np.testing.assert_allclose(changed(tmp_path, table, "embed.weight"), table + 4 * (b @ a).T, rtol=CLOSE, atol=CLOSE)


def test_a_convolution_gets_its_product(tmp_path: Path) -> None:
    weight, a, b = random_array(10, 3, 2, 2, seed=7), random_array(4, 3, 2, 2), random_array(10, 4, 1, 1, seed=1)
    write_adapter(tmp_path, {"conv.lora_A.weight": a, "conv.lora_B.weight": b})
    want = weight + 4 * np.einsum("or,rikl->oikl", b[..., 0, 0], a)
    np.testing.assert_allclose(changed(tmp_path, weight, "conv.weight"), want, rtol=CLOSE, atol=CLOSE)


def test_dora_scales_the_rows_of_the_sum_to_its_lengths(tmp_path: Path) -> None:
    weight, lengths = random_array(10, 6, seed=7), np.abs(random_array(10, seed=3))
    write_adapter(tmp_path, {**DELTA, f"{MODULE}.lora_magnitude_vector": lengths}, use_dora=True)
    total = weight + 4 * DELTA[B] @ DELTA[A]
    want = total * (lengths / np.sqrt((total**2).sum(1)))[:, None]
    np.testing.assert_allclose(changed(tmp_path, weight), want, rtol=CLOSE, atol=CLOSE)


def test_biases_and_whole_modules_come_first(tmp_path: Path) -> None:
    whole, bias, shift = random_array(10, 6, seed=5), random_array(10, seed=6), random_array(10, seed=8)
    tensors = {**DELTA, f"{MODULE}.base_layer.weight": whole, f"{MODULE}.base_layer.bias": bias}
    tensors |= {f"{MODULE}.lora_B.bias": shift, "score.modules_to_save.weight": whole, "norm.weight": bias}
    write_adapter(tmp_path, tensors, bias="all", lora_bias=True, modules_to_save=["score"])
    zeros = np.zeros_like(whole)
    want = whole + 4 * DELTA[B] @ DELTA[A]
    np.testing.assert_allclose(changed(tmp_path, zeros), want, rtol=CLOSE, atol=CLOSE)
    np.testing.assert_allclose(changed(tmp_path, zeros[:, 0], f"{MODULE}.bias"), bias + 4 * shift, rtol=CLOSE)
    np.testing.assert_array_equal(changed(tmp_path, zeros, "score.weight"), whole)
    np.testing.assert_array_equal(changed(tmp_path, zeros[:, 0], "norm.weight"), bias)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"peft_type": "IA3"}, "kind 'IA3', not LORA; merge it with peft"),
        ({"layer_replication": [[0, 2]]}, "setting layer_replication, whose effect is not known"),
        ({"setting_of_tomorrow": 1}, "setting setting_of_tomorrow"),
        ({"init_lora_weights": "pissa_niter_16"}, "began by 'pissa_niter_16', which changes the base's weights"),
        ({"r": 8}, "has the rank 4, but adapter_config.json says 8"),
        ({"use_dora": True}, "do not agree on whether it is of the kind DoRA"),
        ({"target_modules": ["down"]}, "which adapter_config.json does not name as a target"),
        ({"exclude_modules": ["up"]}, "does not name as a target"),
        ({"target_modules": ["up"], "layers_to_transform": [0]}, "does not name as a target"),
    ],
)
def test_settings_that_would_mean_something_else_are_refused(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    write_adapter(tmp_path, DELTA, **settings)
    with pytest.raises(InputError) as refused:
        open_adapter(tmp_path)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("weight", "transposed", "sentence"),
    [
        (random_array(6, 10), False, "has the shape [4, 6], which does not fit w of the shape [6, 10]"),
        (random_array(10, 6), True, "made for another base model"),
    ],
)
def test_a_product_of_another_shape_is_refused(weight: Array, transposed: bool, sentence: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, DELTA)
    with pytest.raises(InputError) as refused:
        changed(tmp_path, weight, transposed=transposed)
    assert sentence in str(refused.value)


def test_one_factor_alone_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, {A: DELTA[A]})
    with pytest.raises(InputError, match=r"not both factors of layers\.1\.mlp\.up"):
        open_adapter(tmp_path)


def test_dora_of_a_convolution_is_refused(tmp_path: Path) -> None:
    tensors = {"conv.lora_A.weight": random_array(4, 3, 2, 2), "conv.lora_B.weight": random_array(10, 4, 1, 1)}
    write_adapter(tmp_path, {**tensors, "conv.lora_magnitude_vector": random_array(10)}, use_dora=True)
    with pytest.raises(InputError, match="read for linear layers; merge it with peft"):
        changed(tmp_path, random_array(10, 3, 2, 2), "conv.weight")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("adapter_config.json", None, "has no adapter_config.json"),
        ("adapter_config.json", "{", "is not readable JSON"),
        ("adapter_config.json", "[]", "is not a JSON object"),
        ("adapter_model.safetensors", None, "but no adapter_model.safetensors"),
        ("adapter_model.safetensors", "", "truncated or corrupt"),
    ],
)
def test_a_folder_that_is_no_adapter_is_refused(name: str, content: str | None, sentence: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, DELTA)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=sentence):
        open_adapter(tmp_path)


def test_a_pickled_adapter_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, DELTA)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model\.bin is a pickle"):
        open_adapter(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    save_file({f"{MODULE}.weight": random_array(10, 6)}, model / "model.safetensors")
    return model


def test_an_adapter_beside_its_base_belongs_to_it(folder: Path) -> None:
    write_adapter(folder, DELTA)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.adapter is not None
    assert list(checkpoint.file_names) == ["adapter_config.json", "adapter_model.safetensors", "model.safetensors"]
    assert open_checkpoint(folder, folder).adapter == checkpoint.adapter


def test_an_adapter_from_elsewhere_is_named_apart(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder, write_adapter(tmp_path / "adapter", DELTA))
    assert list(checkpoint.file_names) == [
        "adapter: adapter_config.json",
        "adapter: adapter_model.safetensors",
        "model.safetensors",
    ]


def test_two_adapters_are_refused(folder: Path, tmp_path: Path) -> None:
    write_adapter(folder, DELTA)
    with pytest.raises(InputError, match=r"has an adapter of its own; move its adapter_config\.json elsewhere"):
        open_checkpoint(folder, write_adapter(tmp_path / "adapter", DELTA))


def test_an_adapter_that_is_no_folder_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        open_checkpoint(folder, folder / "model.safetensors")


def test_an_adapter_of_llama_cpp_is_refused_as_adapter_and_as_model(folder: Path, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "lora.gguf", "llama")
    writer.add_type("adapter")
    close(writer)
    with pytest.raises(InputError, match=r"lora\.gguf is an adapter of llama\.cpp, which is not read; give the folder"):
        open_checkpoint(folder, tmp_path / "lora.gguf")
    with pytest.raises(InputError, match=r"lora\.gguf is an adapter of llama\.cpp and no model; give the model, and"):
        open_checkpoint(tmp_path / "lora.gguf")


def test_an_adapter_alone_names_its_base(tmp_path: Path) -> None:
    write_adapter(tmp_path, DELTA, base_model_name_or_path="org/base")
    with pytest.raises(
        InputError, match=r"without its base model; give the folder of the base \(org/base\), with --ad"
    ):
        open_checkpoint(tmp_path)


def test_settings_are_read_before_the_tensors(tmp_path: Path) -> None:
    write_adapter(tmp_path, DELTA)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"peft_type": "PROMPT_TUNING"}))
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="PROMPT_TUNING"):
        open_adapter(tmp_path)
