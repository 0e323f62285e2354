"""Opening a path: a Hugging Face folder, or one sentence that says why not."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.folder import read_config, written_config
from truecast.checkpoint.pickles import conversion_command
from truecast.errors import InputError


@pytest.fixture(scope="module")
def model() -> AutoModelForCausalLM:
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("shard_bytes", [1_000_000_000, 8_000], ids=["one file", "shards"])
def test_a_folder_written_by_transformers_holds_its_parameters(
    model: AutoModelForCausalLM, shard_bytes: int, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path, max_shard_size=shard_bytes)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "safetensors"
    assert (len(checkpoint.files) > 1) == (shard_bytes == 8_000)
    parameters = dict(model.named_parameters())
    assert checkpoint.tensors.keys() == parameters.keys()
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(tensor.read(), parameters[name].detach().numpy())


def test_the_configuration_and_side_files_are_those_of_the_folder(model: AutoModelForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"tokens")
    (tmp_path / "notes.txt").write_bytes(b"private")
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.config == json.loads((tmp_path / "config.json").read_text())
    assert set(checkpoint.side_files) == {"config.json", "generation_config.json", "tokenizer.json"}
    assert checkpoint.side_files["tokenizer.json"]() == b"tokens"


def folder(path: Path, config: str | None = '{"model_type": "llama"}', tensors: bool = True) -> Path:
    if config is not None:
        (path / "config.json").write_text(config)
    if tensors:
        save_file({"w": torch.zeros(2)}, path / "model.safetensors")
    return path


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        open_checkpoint(tmp_path / "nowhere")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty"):
        open_checkpoint(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        open_checkpoint(folder(tmp_path, config=None))


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"model_type": 3}'])
def test_a_config_that_cannot_be_read_is_refused(config: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        open_checkpoint(folder(tmp_path, config))


def test_a_folder_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        open_checkpoint(folder(tmp_path, tensors=False))


def test_the_configuration_names_the_file_of_the_weights(model: AutoModelForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "hf.safetensors")
    folder(tmp_path, config=None)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"transformers_weights": "hf.safetensors"}))
    checkpoint = open_checkpoint(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert list(checkpoint.file_names) == ["hf.safetensors"]
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(tensor.read(), loaded[name].numpy())


@pytest.mark.parametrize("named", ["[]", '"adapter_model.bin"', '"/etc/a.safetensors"'])
def test_a_name_of_the_weights_that_is_none_is_refused(named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="transformers_weights"):
        open_checkpoint(folder(tmp_path, f'{{"model_type": "llama", "transformers_weights": {named}}}'))


def test_a_lone_variant_is_named(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "model.fp16.safetensors")
    with pytest.raises(InputError, match=r'"transformers_weights": "model\.fp16\.safetensors"'):
        open_checkpoint(folder(tmp_path, tensors=False))


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_file({name: torch.zeros(2)}, tmp_path / name / "model.safetensors")
    weight_map = {name: f"{name}/model.safetensors" for name in ("a", "b")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = open_checkpoint(folder(tmp_path, tensors=False))
    assert list(checkpoint.file_names) == ["a/model.safetensors", "b/model.safetensors"]


def test_numbers_that_json_lacks_are_read_and_written_as_transformers_does(tmp_path: Path) -> None:
    limits = {"high": math.inf, "low": -math.inf, "none": math.nan}
    LlamaConfig(limits=[limits], nested={"__float__": "Infinity", "more": 1}).save_pretrained(tmp_path)
    config = read_config(tmp_path / "config.json")
    assert str(config["limits"]) == str([limits])
    assert config["nested"] == {"__float__": "Infinity", "more": 1}
    (tmp_path / "config.json").write_bytes(written_config(config))
    assert str(LlamaConfig.from_pretrained(tmp_path).limits) == str([limits])


def test_an_adapter_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(InputError, match="adapter without its base model"):
        open_checkpoint(folder(tmp_path, tensors=False))


def test_one_shard_given_alone_points_to_its_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give the folder that holds it"):
        open_checkpoint(folder(tmp_path) / "model.safetensors")


def test_some_other_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(InputError, match="neither a GGUF file nor a folder"):
        open_checkpoint(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(name: str, given: str, tmp_path: Path) -> None:
    folder(tmp_path, tensors=False)
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(InputError) as caught:
        open_checkpoint(tmp_path if given == "folder" else tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert str(caught.value).endswith(conversion_command(tmp_path))


def test_the_conversion_command_converts(model: AutoModelForCausalLM, tmp_path: Path) -> None:
    source = tmp_path / "it's a model"
    model.save_pretrained(source)
    (source / "model.safetensors").unlink()
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    program, *arguments = shlex.split(conversion_command(source))
    assert program == "python"
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)  # no tokenizer to convert here
    checkpoint = open_checkpoint(tmp_path / "it's a model-safetensors")
    embedding = model.get_parameter("model.embed_tokens.weight").detach().numpy()
    np.testing.assert_array_equal(checkpoint.tensors["model.embed_tokens.weight"].read(), embedding)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything: run it as another user")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    (folder(tmp_path) / "config.json").chmod(0)
    with pytest.raises(InputError, match=r"config\.json may not be read"):
        open_checkpoint(tmp_path)


def test_a_quantizer_that_quantized_nothing_is_noticed(tmp_path: Path) -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    checkpoint = open_checkpoint(folder(tmp_path, json.dumps(config)))
    assert checkpoint.quantization is None
    assert "gptq" in checkpoint.notices[0]


def test_an_unknown_quantizer_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": "tomorrow"}}
    with pytest.raises(InputError, match=r"'tomorrow', which is not known; known are .*gptq"):
        open_checkpoint(folder(tmp_path, json.dumps(config)))


def test_a_float_checkpoint_says_nothing(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder(tmp_path))
    assert (checkpoint.quantization, checkpoint.notices) == (None, ())


def test_reading_imports_neither_torch_nor_transformers(model: AutoModelForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    code = (
        "import sys; from truecast.checkpoint import open_checkpoint; "
        f"open_checkpoint({str(tmp_path)!r}).tensors['lm_head.weight'].read(); "
        "assert not {'torch', 'transformers', 'gguf'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe, a socket or a device"):
        open_checkpoint(tmp_path / "pipe")


def test_half_a_surrogate_pair_is_no_model_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "\\ud800"}')
    with pytest.raises(InputError, match="is not readable JSON"):
        open_checkpoint(tmp_path)
