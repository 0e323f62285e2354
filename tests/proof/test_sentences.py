"""The proof of a sentence-transformers folder follows modules.json by itself, whatever the exporter built."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import truecast
from tests.conformance.encoders import BY_NAME
from tests.encoders import KIND, steps_behind
from tests.tiny import tiny_checkpoint
from truecast.artifact import Status
from truecast.errors import ProofError
from truecast.trace import pooling

Step = tuple[str, Mapping[str, Any], Mapping[str, Tensor]]


def long_way(folder: Path) -> Path:
    """Two poolings without the prompt, a projection, a norm and unit length behind a tiny encoder."""
    made = tiny_checkpoint(BY_NAME["bert"], folder)
    generator = torch.Generator().manual_seed(3)
    linear = {"linear.weight": torch.randn(32, 128, generator=generator) / 8, "linear.bias": torch.randn(32) / 8}
    norm = {"norm.weight": torch.rand(32, generator=generator) + 0.5, "norm.bias": torch.randn(32) / 8}
    modes = {"pooling_mode": ["weightedmean", "lasttoken"], "embedding_dimension": 64, "include_prompt": False}
    steps: dict[str, Step] = {
        "1_Pooling": (f"{KIND}.Pooling", modes, {}),
        "2_Dense": (f"{KIND}.Dense", {"in_features": 128, "out_features": 32}, linear),
        "3_LayerNorm": (f"{KIND}.LayerNorm", {"dimension": 32}, norm),
        "4_Normalize": (f"{KIND}.Normalize", {}, {}),
    }
    return steps_behind(made, steps)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return long_way(tmp_path_factory.mktemp("sentences") / "source")


def test_every_step_is_in_the_graph_and_its_files_are_kept(source: Path, tmp_path: Path) -> None:
    made = truecast.export(source, tmp_path / "out", precision="int8")
    assert made.manifest.certificate.status is Status.PROVEN
    graph = made.manifest.graph
    assert [tensor.name for tensor in graph.outputs] == ["last_hidden_state", "sentence_embedding"]
    assert graph.outputs[1].shape == ["batch_size", 32]
    assert "prompt_length" in [tensor.name for tensor in graph.inputs]
    dense = "2_Dense/model.safetensors"
    assert (made.folder / dense).read_bytes() == (source / dense).read_bytes()
    assert {"2_Dense/model.safetensors", "model.safetensors"} < set(made.manifest.source.sha256)
    held = {name for weight in made.manifest.weights for name in weight.sources}
    assert {"2_Dense.linear.weight", "3_LayerNorm.norm.weight"} <= held
    assert made.verify().status is Status.PROVEN


def no_activation(step: pooling.Dense) -> None:
    step.activation = torch.nn.Identity()


def other_pooling(step: pooling.Pooling) -> None:
    step.modes = ["mean", "lasttoken"]


def prompt_counted(step: pooling.Pooling) -> None:
    step.include_prompt = True


@pytest.mark.parametrize(
    ("kind", "spoil"), [("Dense", no_activation), ("Pooling", other_pooling), ("Pooling", prompt_counted)]
)
def test_a_step_that_the_exporter_gets_wrong_fails(
    kind: str, spoil: Callable[[Any], None], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = pooling.STEPS[kind]

    def wrong(*given: Any) -> Any:
        step = right(*given)
        spoil(step)
        return step

    monkeypatch.setattr(pooling, "STEPS", {**pooling.STEPS, kind: wrong})
    with pytest.raises(ProofError, match="sentence_embedding measured"):
        truecast.export(source, tmp_path / "out", precision="fp32")


def test_a_step_that_the_exporter_leaves_out_fails(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = pooling.entries
    monkeypatch.setattr(pooling, "entries", lambda checkpoint: every(checkpoint)[:-1])
    with pytest.raises(ProofError, match="sentence_embedding measured"):
        truecast.export(source, tmp_path / "out", precision="fp32")


def test_weights_that_the_reader_gets_wrong_fail(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter's reader is read by a second one, that of the safetensors library."""
    real = pooling.with_steps

    def doubled(checkpoint: Any) -> Any:
        made = real(checkpoint)
        name = "3_LayerNorm.norm.weight"
        other = made.tensors["3_LayerNorm.norm.bias"]
        made.tensors[name] = other.__class__(**{**other.__dict__, "name": name})
        return made

    monkeypatch.setattr("truecast.trace.opening.with_steps", doubled)
    with pytest.raises(ProofError, match=r"3_LayerNorm\.norm\.weight is read with other values"):
        truecast.export(source, tmp_path / "out", precision="fp32")


def test_token_embeddings_of_late_interaction_leave_the_graph(tmp_path: Path) -> None:
    made = tiny_checkpoint(BY_NAME["bert"], tmp_path / "source")
    settings = {"in_features": 64, "out_features": 16, "bias": False, "use_residual": False}
    settings["activation_function"] = "torch.nn.modules.linear.Identity"
    weights = {"linear.weight": torch.randn(16, 64) / 8}
    steps_behind(made, {"1_Dense": ("pylate.models.Dense.Dense", settings, weights)})
    out = truecast.export(made, tmp_path / "out", precision="fp32").manifest
    assert out.certificate.status is Status.PROVEN
    shapes = {tensor.name: tensor.shape for tensor in out.graph.outputs}
    assert shapes["token_embeddings"] == ["batch_size", "sequence_length", 16]
    assert "pooler_output" not in shapes


def test_a_cross_encoder_with_a_list_of_modules_keeps_its_head(tmp_path: Path) -> None:
    made = tiny_checkpoint(BY_NAME["bert_sequence"], tmp_path / "source")
    steps_behind(made, {})
    (made / "sentence_bert_config.json").write_text(json.dumps({"transformer_task": "sequence-classification"}))
    out = truecast.export(made, tmp_path / "out", precision="fp32", verify=False).manifest
    assert (out.task, [tensor.name for tensor in out.graph.outputs]) == ("text-classification", ["logits"])
