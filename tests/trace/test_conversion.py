"""Tensors that transformers merges are the parameters it makes of them, and nothing else is guessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import Chunk, ConversionOps, Interleave, Split, Transpose, WeightConverter

from tests.conformance.cases import BY_NAME
from tests.encodings import make_affine
from tests.quantized_experts import split_experts
from tests.tiny import stored_model, tiny_checkpoint, tiny_model
from tests.weights.stored import encoded
from truecast.checkpoint import Checkpoint, open_checkpoint
from truecast.checkpoint.encoding import decode
from truecast.checkpoint.memory import memory_checkpoint
from truecast.checkpoint.model import Array
from truecast.errors import InputError
from truecast.trace import conversion
from truecast.trace.conversion import as_parameters

EXPERT = "model.layers.1.mlp.experts.2.gate_proj.weight"


@pytest.fixture(scope="module", params=["mixtral", "qwen3_moe", "phimoe"])
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, PreTrainedModel]:
    folder = tiny_checkpoint(BY_NAME[request.param], tmp_path_factory.mktemp(request.param))
    return open_checkpoint(folder), stored_model(folder)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, PreTrainedModel]:
    folder = tiny_checkpoint(BY_NAME["qwen3_moe"], tmp_path_factory.mktemp("qwen"))
    return open_checkpoint(folder), stored_model(folder)


def test_every_parameter_is_as_transformers_loads_it(loaded: tuple[Checkpoint, PreTrainedModel]) -> None:
    checkpoint, model = loaded
    whole = as_parameters(checkpoint, model)
    stacks = {name: tensor for name, tensor in whole.tensors.items() if tensor.matrices is not None}
    assert len(stacks) == 4
    for name, tensor in stacks.items():
        np.testing.assert_array_equal(tensor.read(), model.get_parameter(name).detach().numpy())
    assert whole.files == checkpoint.files
    assert sum(t.nbytes for t in whole.tensors.values()) == sum(t.nbytes for t in checkpoint.tensors.values())


def test_a_missing_matrix_is_refused(qwen: tuple[Checkpoint, PreTrainedModel]) -> None:
    checkpoint, model = qwen
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name != EXPERT}
    with pytest.raises(InputError, match=r"has 3 of .*gate_proj.* 4 of .*up_proj.* incomplete"):
        as_parameters(replace(checkpoint, tensors=tensors), model)


def converted_by(
    monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel, tensors: dict[str, Array], converter: WeightConverter
) -> Checkpoint:
    monkeypatch.setattr(conversion, "get_model_conversion_mapping", lambda model: [converter])
    return as_parameters(memory_checkpoint(Path("here"), tensors, {}, {}), model)


PIECES = [f"self_attn.{name}_proj.weight" for name in "qkv"]
GATES = ["mlp.gate_proj.weight", "mlp.up_proj.weight"]


@pytest.mark.parametrize(
    ("operations", "pieces"),
    [([Chunk(0)], GATES), ([Split(0)], PIECES), ([Interleave(0), Chunk(0)], GATES), ([Transpose(), Split(0)], PIECES)],
    ids=["chunk", "split", "interleave", "transpose"],
)
def test_parameters_that_are_parts_of_one_tensor_are_what_transformers_makes_of_it(
    operations: list[ConversionOps], pieces: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(BY_NAME["llama"])
    names = [f"model.layers.0.{piece}" for piece in pieces]
    whole = torch.cat([model.get_parameter(name).detach() for name in names])
    for operation in reversed(operations[:-1]):
        whole = operation.reverse_op.convert({"x": whole}, source_patterns=["x"], target_patterns=["x"])["x"]
    converter = WeightConverter("fused.weight", pieces, operations)
    found = converted_by(monkeypatch, model, {"model.layers.0.fused.weight": whole.numpy()}, converter)
    assert list(found.tensors) == names
    for name in reversed(names):
        np.testing.assert_array_equal(found.tensors[name].rows(1, 5), model.get_parameter(name).detach().numpy()[1:5])


def test_parts_of_codes_stay_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(BY_NAME["llama"])
    rows, width = model.get_parameter(f"model.layers.0.{GATES[0]}").shape
    drawn = make_affine(0, 4, 32, (2 * rows, width), zero="groups", offsets="float16")
    whole = encoded("model.layers.0.fused.weight", drawn.encoding, (2 * rows, width))
    monkeypatch.setattr(
        conversion, "get_model_conversion_mapping", lambda model: [WeightConverter("fused.weight", GATES, [Chunk(0)])]
    )
    found = as_parameters(replace(memory_checkpoint(Path("here"), {}, {}, {}), tensors={whole.name: whole}), model)
    for index, name in enumerate(GATES):
        piece = found.tensors[f"model.layers.0.{name}"]
        assert piece.encoding is not None
        np.testing.assert_array_equal(decode(piece.encoding, width, 0, rows), drawn.values[rows * index :][:rows])


@pytest.mark.parametrize("names", [("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")])
def test_experts_are_stacked_where_only_a_quantizer_split_them(names: tuple[str, str, str], tmp_path: Path) -> None:
    model = stored_model(tiny_checkpoint(BY_NAME["granitemoe"], tmp_path / "whole"))
    found = as_parameters(open_checkpoint(split_experts(tmp_path / "split", names)), model)
    stacks = {name: tensor for name, tensor in found.tensors.items() if tensor.matrices is not None}
    assert len(stacks) == 4
    for name, tensor in stacks.items():
        np.testing.assert_array_equal(tensor.read(), model.get_parameter(name).detach().numpy())


def test_what_the_class_declares_needless_is_ignored_with_the_reason(tmp_path: Path) -> None:
    model = tiny_model(BY_NAME["llama"])
    model._keys_to_ignore_on_load_unexpected = {r"^mtp\."}
    arrays = {"mtp.layers.0.weight": np.zeros((2, 2), np.float32), "mtpx": np.zeros(2, np.float32)}
    found = as_parameters(memory_checkpoint(tmp_path, arrays, {}, {}), model)
    assert found.ignored == {"mtp.layers.0.weight": "LlamaForCausalLM declares that it does not need it"}
    assert list(found.tensors) == ["mtpx"]


def test_layers_that_predict_further_tokens_are_ignored_with_the_reason(tmp_path: Path) -> None:
    arrays = {f"model.layers.{index}.eh_proj.weight": np.zeros((2, 2), np.float32) for index in (1, 2, 3)}
    config = {"num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    found = as_parameters(memory_checkpoint(tmp_path, arrays, config, {}), tiny_model(BY_NAME["llama"]))
    assert list(found.ignored) == ["model.layers.2.eh_proj.weight"]
    assert "behind the 2 layers" in found.ignored["model.layers.2.eh_proj.weight"]


def test_a_conversion_that_does_not_fit_the_tensors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(BY_NAME["llama"])
    converter = WeightConverter("fused.weight", PIECES, [Split(0)])
    with pytest.raises(InputError, match=r"made by Split of model\.layers\.0\.fused\.weight, which does not fit"):
        converted_by(monkeypatch, model, {"model.layers.0.fused.weight": np.zeros((7, 64), np.float32)}, converter)


def test_a_model_without_stacks_is_left_alone(tmp_path: Path) -> None:
    folder = tiny_checkpoint(BY_NAME["llama"], tmp_path)
    checkpoint = open_checkpoint(folder)
    assert as_parameters(checkpoint, stored_model(folder)).tensors == checkpoint.tensors
