"""The reference: the author's model with weights that we streamed in, against transformers' own loading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import truecast
from tests.conformance.cases import BY_NAME
from tests.proof.conftest import Artifact
from tests.proof.planting import manifest_of
from tests.tiny import tiny_checkpoint, tiny_model
from truecast.artifact import Status
from truecast.checkpoint import open_checkpoint
from truecast.errors import InputError
from truecast.proof.held import held_weights, load_graph
from truecast.proof.reference import Reference
from truecast.runtime.decoder import positions


def logits(reference: Reference, total: int, fresh: bool = True) -> np.ndarray:
    ids = np.random.default_rng(0).integers(0, 250, (2, total))
    mask = np.ones_like(ids)
    if fresh:
        reference.reset()
    return reference.step(reference.new_cache(), ids, mask, positions(mask, total))


@pytest.mark.parametrize(
    "name", ["llama_tied", "gemma3_text", "gpt2", "opt", "llama_sharded", "gpt2_as_first_published"]
)
def test_it_is_the_authors_model(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    reference = Reference.build(open_checkpoint(tiny_checkpoint(case, tmp_path)))
    reference.load_checkpoint()
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 250, (2, 20)))
    model = tiny_model(case)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, case.stored)).float()
    with torch.no_grad():
        want = model(ids).logits.numpy()
    np.testing.assert_allclose(logits(reference, 20), want, atol=2e-6 * np.abs(want).max())


def test_it_forgets_the_longest_sequence_it_has_seen(tmp_path: Path) -> None:
    reference = Reference.build(open_checkpoint(tiny_checkpoint(BY_NAME["llama_rope_dynamic"], tmp_path)))
    reference.load_checkpoint()
    before = logits(reference, 45)
    logits(reference, 64)
    assert not np.array_equal(logits(reference, 45, fresh=False), before)
    assert np.array_equal(logits(reference, 45), before)


@pytest.mark.parametrize("case", ["gemma3_text", "gpt2"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_it_takes_the_weights_that_an_artifact_holds(case: str, precision: str, made: Artifact) -> None:
    folder = made(case, precision)
    manifest = manifest_of(folder)
    reference = Reference.build(open_checkpoint(manifest.source.path))
    reference.load_checkpoint()
    before = {name: parameter.clone() for name, parameter in reference.parameters.items()}
    reference.load_held(held_weights(load_graph(folder, "model.onnx"), manifest.weights, reference.sources))
    moved = {name: float((parameter - before[name]).abs().max()) for name, parameter in reference.parameters.items()}
    assert all(distance < 0.2 for distance in moved.values())
    assert (max(moved.values()) > 0) is (precision != "fp32")


def test_the_float64_twin_leaves_no_trace(tmp_path: Path) -> None:
    reference = Reference.build(open_checkpoint(tiny_checkpoint(BY_NAME["gemma3_text"], tmp_path)))
    reference.load_checkpoint()
    before = logits(reference, 20)
    with reference.in_float64():
        twin = logits(reference, 20)
    assert twin.dtype == np.float64 and 0 < np.abs(twin - before).max() < 1e-5
    assert np.array_equal(logits(reference, 20), before)


def test_a_checkpoint_without_a_weight_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tiny_checkpoint(BY_NAME["llama_tied"], tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"model\.norm\.weight"):
        Reference.build(open_checkpoint(folder)).load_checkpoint()


class Tied(nn.Module):
    """Logits by the table of tokens, which is a table of floats and a product of codes in one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.table(ids)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("precision", ["int8-dynamic", "int4"])
def test_a_tensor_that_two_modules_share_is_compared_as_each_of_them_has_it(precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = truecast.export(Tied(), tmp_path / "out", example_inputs=torch.arange(21).view(3, 7), precision=precision)
    assert result.manifest.certificate.status is Status.PROVEN
    spoilt = {info.initializers[0] for info in result.manifest.weights if info.packing.startswith("int")}
    assert spoilt == {f"head.weight.{'channel_codes' if precision == 'int8-dynamic' else 'codes'}"}
