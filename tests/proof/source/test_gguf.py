"""A GGUF file is read once more for the proof: its values by the gguf package, its facts by llama.cpp's rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

import truecast
from tests.adapters import factors, write_adapter
from tests.checkpoint.gguf.cases import ARCHITECTURES, BY_NAME
from tests.checkpoint.gguf.files import Converted
from tests.proof.planting import manifest_of
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.gguf import architectures, config, opening
from truecast.checkpoint.model import Checkpoint
from truecast.errors import ProofError
from truecast.proof.held import held_weights, load_graph
from truecast.proof.reference import Reference
from truecast.proof.source import gguf_file
from truecast.proof.source.checks import FACTS, KEYS, VALUES, loading_checks
from truecast.proof.source.gguf_file import GgufFile
from truecast.proof.source.llama_cpp import fact_faults
from truecast.proof.source.loading import load_decoder

Q8_0 = gguf.GGMLQuantizationType.Q8_0
LLAMA = BY_NAME["llama"]
LINEAR = replace(
    LLAMA,
    settings={**LLAMA.settings, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
    metadata={**LLAMA.metadata, "rope.scaling.factor": 4.0},
)
OF_SHAPES = {"feed_forward_length", "expert_feed_forward_length", "expert_shared_feed_forward_length"}
"""Facts that the shapes of the tensors decide."""
WITHOUT_EFFECT = {"attention.head_count_kv": {"bloom", "gpt2", "mpt"}, "rope.freq_base": {"bloom", "gpt2", "mpt"}}
"""Facts that these models have no place for, whatever a file says."""
NARROW = {"rope.scaling.original_context_length": {"olmo3", "qwen2"}}
"""Heads so narrow that YaRN divides every angle, whatever the original context."""


def other(value: Any) -> Any:
    """What a file may state in place of a value; None for texts that are not of a kind of scaling."""
    if isinstance(value, list):
        return [not one for one in value]
    if isinstance(value, str):
        return {"linear": "none", "yarn": "linear"}.get(value)
    return not value if isinstance(value, bool) else value * 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    LINEAR.write(path, kind=Q8_0)
    return path


@pytest.fixture(scope="module")
def artifact(source: Path) -> Path:
    out = source.with_name("out")
    truecast.export(source, out, verify=False)
    return out


def wrong(artifact: Path, checkpoint: Checkpoint) -> dict[str, str]:
    """Details of the failed checks of an artifact against a checkpoint, by name."""
    reference, manifest = Reference.build(checkpoint), manifest_of(artifact)
    weights = held_weights(load_graph(artifact, "model.onnx"), manifest.weights, reference.sources)
    found = loading_checks(reference, manifest, weights, reference.sources, lambda done, total: None)
    assert [check.name for check in found] == [VALUES, KEYS, FACTS]
    return {check.name: check.detail for check in found if not check.passed}


def unlike(reference: Reference) -> Iterator[str]:
    """The parameters that the exporter's reader takes differently."""
    for name, parameter in reference.parameters.items():
        read = reference.sources[name].read().reshape(parameter.shape)
        if not torch.equal(torch.from_numpy(np.array(read, np.float32)), parameter):
            yield name


@pytest.mark.parametrize("case", ARCHITECTURES, ids=lambda case: case.name)
def test_values_and_facts_of_every_architecture_agree_and_every_other_fact_is_noticed(
    case: Converted, tmp_path: Path
) -> None:
    case.write(tmp_path / "model.gguf", kind=Q8_0)
    reference = Reference.build(open_checkpoint(tmp_path / "model.gguf"))
    loaded = reference.loaded
    assert loaded is not None and loaded.file is not None and not loaded.missing and not loaded.unexpected
    assert not list(unlike(reference)) and not list(fact_faults(reference.model, loaded.file))
    for key, value in {"rope.freq_base": 5.0, **case.metadata, "context_length": 64, "block_count": 3}.items():
        stated, spared = other(value), {*WITHOUT_EFFECT.get(key, ()), *NARROW.get(key, ())}
        if stated is not None and key not in OF_SHAPES and case.name not in spared | {"starcoder"}:
            changed = {**loaded.file.metadata, f"{case.architecture}.{key}": stated}
            assert list(fact_faults(reference.model, replace(loaded.file, metadata=changed))), key


def test_a_file_that_is_read_rightly_passes_and_names_who_decoded_it(source: Path, artifact: Path) -> None:
    assert wrong(artifact, open_checkpoint(source)) == {}
    assert "from the gguf package" in load_decoder(open_checkpoint(source)).loader


def test_a_reader_that_drops_the_scaling_of_positions_is_found(
    source: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "rope_parameters", lambda facts: {"rope_theta": 5e5, "rope_type": "default"})
    detail = wrong(artifact, open_checkpoint(source))[FACTS]
    assert "model.rotary_emb turns texts of 1 positions by other angles than the file says" in detail


def test_a_reader_that_takes_another_epsilon_is_found(
    source: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architectures, "_rms_eps", lambda facts: {"rms_norm_eps": 1e-6})
    detail = wrong(artifact, open_checkpoint(source))[FACTS]
    assert "model.layers.0.input_layernorm has the epsilon 1e-06, which is 1e-05 in the file" in detail


def test_a_reader_that_leaves_rows_of_queries_and_keys_permuted_is_found(
    source: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "undo", lambda rewrite, reader, *rest: reader)
    assert "q_proj.weight is read with other values" in wrong(artifact, open_checkpoint(source))[VALUES]


def test_a_reader_that_takes_another_scale_of_blocks_is_found(
    source: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "dequantize", lambda raw, kind: dequantize(raw, kind) * np.float32(1.01))
    assert "embed_tokens.weight is read with other values" in wrong(artifact, open_checkpoint(source))[VALUES]


def test_a_tensor_that_the_reader_invents_or_leaves_out_is_found(
    source: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = GgufFile.open(source)
    tensors = dict(plain.tensors)
    tensors["blk.0.secret.weight"] = tensors.pop("blk.0.attn_q.bias")
    monkeypatch.setattr(gguf_file.GgufFile, "open", lambda path: replace(plain, tensors=tensors))
    detail = wrong(artifact, open_checkpoint(source))[KEYS]
    assert "model.layers.0.self_attn.q_proj.bias is held, but transformers finds no tensor for it" in detail
    assert "blk.0.secret.weight has no place in the model of transformers" in detail


def test_a_misread_file_is_not_published(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "undo", lambda rewrite, reader, *rest: reader)
    with pytest.raises(ProofError, match=VALUES):
        truecast.export(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_added_to_what_the_file_holds(source: Path, tmp_path: Path) -> None:
    module = "model.layers.0.self_attn.q_proj"
    adapter = write_adapter(tmp_path / "adapter", factors(module, 64, 64))
    reference = Reference.build(open_checkpoint(source, adapter))
    base = Reference.build(open_checkpoint(source)).model.get_parameter(f"{module}.weight")
    changed, read = reference.model.get_parameter(f"{module}.weight"), reference.sources[f"{module}.weight"].read()
    assert float((changed - base).abs().max()) > 1
    np.testing.assert_allclose(read, changed.numpy(), atol=2.0**-18 * float(changed.abs().max()))


def test_the_parts_of_a_file_are_read_together(tmp_path: Path) -> None:
    for number in (1, 2):
        LLAMA.write(tmp_path / f"model-0000{number}-of-00002.gguf")
    found = GgufFile.open(tmp_path / "model-00002-of-00002.gguf")
    assert "blk.1.attn_q.weight" in found.tensors and found.architecture == "llama"


def test_strings_of_a_vocabulary_are_stepped_over_and_numbers_kept(source: Path) -> None:
    metadata = GgufFile.open(source).metadata
    assert metadata["tokenizer.ggml.tokens"] == []
    assert metadata["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 2]
    assert metadata["tokenizer.ggml.bos_token_id"] == 1
