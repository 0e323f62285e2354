"""What training wrapped around a model is taken off the names of its tensors, and off nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conformance.cases import BY_NAME
from tests.conformance.encoders import BY_NAME as ENCODERS
from tests.tiny import tiny_checkpoint
from truecast.checkpoint import open_checkpoint

VALUES = {"v_head.summary.weight": np.ones((1, 8), np.float32)}


def wrapped(folder: Path, names: dict[str, str], more: dict[str, np.ndarray] | None = None) -> Path:
    """The folder with its tensors under other names."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {names.get(name, name): tensor for name, tensor in tensors.items()}
    save_file(renamed | (more or {}), folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize(
    "front",
    ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod.", "_orig_mod.module.", "pretrained_model."],
)
def test_names_are_those_of_the_model(name: str, front: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint({**BY_NAME, **ENCODERS}[name], tmp_path)
    plain = open_checkpoint(folder)
    found = open_checkpoint(wrapped(folder, {name: front + name for name in plain.tensors}, VALUES))
    assert {name: tensor.name for name, tensor in found.tensors.items()} == {n: n for n in (*plain.tensors, *VALUES)}
    assert "which training wrote into them" in found.notices[0]


def test_a_compiled_layer_inside_is_found(tmp_path: Path) -> None:
    folder = tiny_checkpoint(BY_NAME["llama"], tmp_path)
    plain = open_checkpoint(folder)
    names = {name: name.replace("layers.0.", "layers.0._orig_mod.") for name in plain.tensors}
    assert open_checkpoint(wrapped(folder, names)).tensors.keys() == plain.tensors.keys()


def test_a_front_that_not_all_names_have_stays(tmp_path: Path) -> None:
    folder = tiny_checkpoint(BY_NAME["llama"], tmp_path)
    first, *rest = open_checkpoint(folder).tensors
    found = open_checkpoint(wrapped(folder, {name: f"module.{name}" for name in rest}))
    assert set(found.tensors) == {first, *(f"module.{name}" for name in rest)}
    assert found.notices == ()
