"""The reference is loaded by transformers itself, and what the exporter's reader takes differently is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import truecast
from tests.adapters import factors, random_array, write_adapter
from tests.checkpoint.schemes.stored import DATA
from tests.conformance.cases import BY_NAME
from tests.encoders import classifier
from tests.proof.conftest import Artifact
from tests.proof.planting import failed, manifest_of
from tests.quantized_experts import split_experts
from tests.tiny import tiny_checkpoint
from truecast.artifact import Manifest
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.model import Checkpoint, StoredTensor
from truecast.errors import InputError, ProofError
from truecast.proof.held import held_weights, load_graph
from truecast.proof.proving import prove
from truecast.proof.reference import Reference
from truecast.proof.source.checks import KEYS, VALUES, loading_checks
from truecast.proof.source.loading import load_decoder
from truecast.trace import opening

NAME = "model.layers.0.mlp.up_proj.weight"


def checks_of(reference: Reference, folder: Path) -> dict[str, str]:
    """Names and details of the failed checks of an artifact, against a reference."""
    manifest: Manifest = manifest_of(folder)
    weights = held_weights(load_graph(folder, "model.onnx"), manifest.weights, reference.sources)
    found = loading_checks(reference, manifest, weights, reference.sources, lambda done, total: None)
    assert [check.name for check in found] == [VALUES, KEYS]
    return {check.name: check.detail for check in found if not check.passed}


def as_read(checkpoint: Checkpoint, change: Callable[[dict[str, StoredTensor]], None]) -> Checkpoint:
    """What a reader gives that takes other tensors for those of the folder."""
    tensors = dict(checkpoint.tensors)
    change(tensors)
    return replace(checkpoint, tensors=tensors)


def swap(tensors: dict[str, StoredTensor]) -> None:
    other = NAME.replace("up", "gate")
    tensors[NAME], tensors[other] = (replace(tensors[a], name=b) for a, b in ((other, NAME), (NAME, other)))


@pytest.mark.parametrize("case", ["llama_tied", "gpt2", "mixtral"])
def test_what_is_read_rightly_agrees_with_transformers(case: str, made: Artifact) -> None:
    folder = made(case, "fp32")
    reference = Reference.build(open_checkpoint(manifest_of(folder).source.path))
    assert reference.loaded is not None and reference.loaded.loader.startswith("transformers 5")
    assert checks_of(reference, folder) == {}


def test_weights_that_the_reader_takes_for_one_another_fail_the_proof(made: Artifact) -> None:
    folder = made("llama_tied", "fp32")
    misread = as_read(open_checkpoint(manifest_of(folder).source.path), swap)
    wrong = failed(prove(folder, misread, manifest_of(folder)))
    assert f"{NAME} is read with other values, the first in row 0" in wrong[VALUES].detail


def test_the_file_that_transformers_would_not_take_fails_the_proof(made: Artifact, tmp_path: Path) -> None:
    folder = made("llama_tied", "fp32")
    source = Path(shutil.copytree(manifest_of(folder).source.path, tmp_path / "source"))
    others = {name: tensor + 1 for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(others, source / "hf.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"transformers_weights": "hf.safetensors"}))
    ignores_it = replace(open_checkpoint(manifest_of(folder).source.path), path=source)
    assert "is read with other values" in checks_of(Reference.build(ignores_it), folder)[VALUES]


def test_experts_in_another_order_fail_the_proof(made: Artifact) -> None:
    folder = made("mixtral", "fp32")
    stack = "model.layers.1.mlp.experts.gate_up_proj"
    reference = Reference.build(open_checkpoint(manifest_of(folder).source.path))
    found = reference.sources.checkpoint.tensors[stack]
    reordered = replace(found, reader=lambda start, stop: found.read()[::-1][start:stop])
    reference.sources.checkpoint = as_read(
        reference.sources.checkpoint, lambda tensors: tensors.update({stack: reordered})
    )
    assert stack in checks_of(reference, folder)[VALUES]


def test_keys_that_transformers_misses_or_has_no_place_for_are_faults(made: Artifact, tmp_path: Path) -> None:
    folder = made("llama_tied", "fp32")
    whole = open_checkpoint(manifest_of(folder).source.path)
    source = Path(shutil.copytree(whole.path, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.mlp.secret"] = tensors.pop(NAME)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    detail = checks_of(Reference.build(replace(whole, path=source)), folder)[KEYS]
    assert f"{NAME} is held, but transformers finds no tensor for it" in detail
    assert "model.layers.0.mlp.secret has no place in the model of transformers" in detail


@pytest.mark.parametrize("front", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."])
def test_names_of_what_a_model_was_trained_in_are_taken_off(front: str, tmp_path: Path) -> None:
    source = tiny_checkpoint(BY_NAME["llama"], tmp_path)
    plain, tensors = open_checkpoint(source), load_file(source / "model.safetensors")
    save_file(
        {front + name: tensor for name, tensor in tensors.items()}, source / "model.safetensors", {"format": "pt"}
    )
    loaded = load_decoder(plain)
    assert not loaded.missing and not loaded.unexpected
    assert torch.equal(loaded.model.get_parameter(NAME), tensors[NAME])


def test_loading_says_nothing_and_leaves_the_file_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tiny_checkpoint(BY_NAME["llama"], tmp_path)
    capfd.readouterr()
    loaded = load_decoder(open_checkpoint(source))
    loaded.model.get_parameter(NAME).zero_()
    assert capfd.readouterr() == ("", "")
    assert load_file(source / "model.safetensors")[NAME].abs().max() > 0


def test_a_folder_that_transformers_does_not_load_is_refused_in_a_sentence(tmp_path: Path) -> None:
    source = tiny_checkpoint(BY_NAME["llama"], tmp_path)
    checkpoint = open_checkpoint(source)
    (source / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"cannot be compared .* AutoModel.from_pretrained takes it\.$"):
        load_decoder(checkpoint)


def test_an_encoder_whose_weights_are_misread_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (f"bert.encoder.layer.{layer}.output.dense.weight" for layer in (0, 1))

    def misread(path: Path, *rest: object) -> Checkpoint:
        def change(tensors: dict[str, StoredTensor]) -> None:
            tensors[first], tensors[second] = (
                replace(tensors[a], name=b) for a, b in ((second, first), (first, second))
            )

        return as_read(open_checkpoint(path), change)

    monkeypatch.setattr(opening, "open_checkpoint", misread)
    with pytest.raises(ProofError, match="weights as the source's own loader reads them"):
        truecast.export(classifier(tmp_path / "source"), tmp_path / "out", precision="fp32")


def test_values_of_a_quantized_source_come_from_the_definitions() -> None:
    reference = Reference.build(open_checkpoint(DATA / "hqq-axis1"))
    assert reference.loaded is not None and reference.loaded.loader.endswith("the definitions of the formats")
    stored = reference.sources["model.layers.0.mlp.up_proj.weight"].read()
    assert np.array_equal(reference.model.get_parameter("model.layers.0.mlp.up_proj.weight").numpy(), stored)


QUERY = "model.layers.0.self_attn.q_proj"


def test_an_adapter_that_the_reader_ignores_fails_the_proof(tmp_path: Path) -> None:
    case = BY_NAME["llama_tied"]
    source = tiny_checkpoint(case, tmp_path / "source")
    size = load_file(source / "model.safetensors")[f"{QUERY}.weight"].shape
    write_adapter(source, factors(QUERY, *size))
    artifact = truecast.export(source, tmp_path / "out", precision="fp32")
    assert artifact.manifest.certificate.status.value == "proven"
    ignored = Reference.build(replace(open_checkpoint(source), adapter=None))
    assert f"{QUERY}.weight is read with other values" in checks_of(ignored, artifact.folder)[VALUES]


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}, {"use_dora": True}])
def test_low_rank_adapters_are_added_as_the_reader_adds_them(settings: dict[str, object], tmp_path: Path) -> None:
    source = tiny_checkpoint(BY_NAME["llama"], tmp_path / "source")
    size = load_file(source / "model.safetensors")[f"{QUERY}.weight"].shape
    lengths = {f"{QUERY}.lora_magnitude_vector": random_array(size[0])} if "use_dora" in settings else {}
    adapter = write_adapter(tmp_path / "adapter", {**factors(QUERY, *size), **lengths}, **settings)
    reference = Reference.build(open_checkpoint(source, adapter))
    loaded, read = reference.model.get_parameter(f"{QUERY}.weight").numpy(), reference.sources[f"{QUERY}.weight"].read()
    np.testing.assert_allclose(read, loaded, atol=2.0**-18 * np.abs(loaded).max())


@pytest.mark.parametrize("name", ["auto-round-gptq-4bit", "auto-round-awq"])
def test_an_adapter_is_added_to_the_decoded_weights_of_a_quantized_base(name: str, tmp_path: Path) -> None:
    base = Reference.build(open_checkpoint(DATA / name)).model.get_parameter(f"{QUERY}.weight").numpy()
    reference = Reference.build(
        open_checkpoint(DATA / name, write_adapter(tmp_path / "adapter", factors(QUERY, *base.shape)))
    )
    loaded, read = reference.model.get_parameter(f"{QUERY}.weight").numpy(), reference.sources[f"{QUERY}.weight"].read()
    assert np.abs(loaded - base).max() > 1
    np.testing.assert_allclose(read, loaded, atol=2.0**-18 * np.abs(loaded).max())


def test_an_encoder_is_proven_with_its_adapter(tmp_path: Path) -> None:
    source = classifier(tmp_path / "source")
    adapter = write_adapter(tmp_path / "adapter", factors("bert.encoder.layer.0.attention.self.query", 64, 64))
    artifact = truecast.export(source, tmp_path / "out", precision="fp32", adapter=adapter)
    assert artifact.manifest.certificate.status.value == "proven"
    assert f"The adapter in {adapter} is added to 1 parameter." in artifact.manifest.notices


@pytest.mark.parametrize("names", [("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")])
def test_experts_stored_one_by_one_are_the_stacks_of_the_class(names: tuple[str, str, str], tmp_path: Path) -> None:
    whole = load_decoder(open_checkpoint(tiny_checkpoint(BY_NAME["granitemoe"], tmp_path / "whole")))
    split = load_decoder(open_checkpoint(split_experts(tmp_path / "split", names)))
    assert not split.missing and not split.unexpected
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(split.model.get_parameter(name), parameter), name


def test_a_padding_token_without_a_row_is_left_out(tmp_path: Path) -> None:
    source = tiny_checkpoint(BY_NAME["llama"], tmp_path)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"pad_token_id": config["vocab_size"]}))
    assert load_decoder(open_checkpoint(source)).model.config.pad_token_id is None
