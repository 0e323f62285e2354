"""Tensors that transformers merges are the parameters it makes of them, and nothing else is guessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel
from transformers.core_model_loading import Chunk, WeightConverter

from tests.conformance.cases import BY_NAME
from tests.tiny import stored_model, tiny_checkpoint
from truecast.checkpoint import Checkpoint, open_checkpoint
from truecast.errors import InputError
from truecast.trace import skeleton
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


def test_another_way_of_merging_is_refused(
    qwen: tuple[Checkpoint, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, model = qwen
    other = WeightConverter(["mlp.experts.*.gate_proj.weight"], "mlp.experts.gate_up_proj", [Chunk(0)])
    monkeypatch.setattr(skeleton, "get_model_conversion_mapping", lambda model: [other])
    with pytest.raises(InputError, match="cannot be done row by row"):
        as_parameters(checkpoint, model)


def test_a_model_without_stacks_is_left_alone(tmp_path: Path) -> None:
    folder = tiny_checkpoint(BY_NAME["llama"], tmp_path)
    checkpoint = open_checkpoint(folder)
    assert as_parameters(checkpoint, stored_model(folder)).tensors == checkpoint.tensors
