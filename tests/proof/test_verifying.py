"""`verify`: files and source first, then the proof; nothing on disk changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.adapters import factors, write_adapter
from tests.conformance.cases import BY_NAME
from tests.proof.conftest import Artifact
from tests.proof.planting import change_manifest, failed, manifest_of
from tests.tiny import tiny_checkpoint, tiny_model
from truecast.artifact import Status, sha256_of
from truecast.checkpoint import open_checkpoint
from truecast.errors import InputError
from truecast.exporting import export
from truecast.proof import prove, verify
from truecast.proof.files import source_check
from truecast.request import Request

CASE = "gemma3_text"

END = "run the end of the context"


def test_a_sound_artifact_is_proven_again_and_left_alone(spoilable: Artifact) -> None:
    folder = spoilable(CASE, "int4")
    before = {path.name: sha256_of(path) for path in folder.iterdir()}
    stages: list[str] = []
    certificate = verify(folder, progress=lambda stage, done, total: stages.append(stage))
    assert certificate.status is Status.PROVEN
    assert {path.name: sha256_of(path) for path in folder.iterdir()} == before
    told = ("check files", "check source", "open the source", "check weights", "check the source", "measure noise")
    ran = ("run the original", "check products", "compare", "compare other ways", "generate", END)
    assert list(dict.fromkeys(stages)) == [*told, *ran]


def test_the_same_proof_gives_the_same_certificate(made: Artifact) -> None:
    manifest = manifest_of(made(CASE, "int4"))
    first, second = (prove(made(CASE, "int4"), open_checkpoint(manifest.source.path), manifest) for _ in range(2))
    assert first == second
    assert "threads" in first.environment and "features" in first.environment


def test_a_changed_file_fails_though_the_model_is_the_same(spoilable: Artifact) -> None:
    folder = spoilable(CASE, "int4")
    (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    certificate = verify(folder)
    assert certificate.status is Status.FAILED
    assert failed(certificate)["files of the artifact"].detail == "tokenizer_config.json has changed"


def test_a_missing_file_fails_without_a_proof(spoilable: Artifact) -> None:
    folder = spoilable(CASE, "int4")
    (folder / "model.onnx.data").unlink()
    certificate = verify(folder)
    assert certificate.status is Status.FAILED
    assert failed(certificate)["files of the artifact"].detail == "model.onnx.data is missing"


def test_a_source_that_is_gone_is_asked_for(spoilable: Artifact, tmp_path: Path) -> None:
    folder = spoilable(CASE, "int4")
    source = manifest_of(folder).source
    change_manifest(folder, source=source.model_copy(update={"path": str(tmp_path / "gone")}))
    with pytest.raises(InputError, match="--against"):
        verify(folder)
    assert verify(folder, against=source.path).status is Status.PROVEN


def test_another_checkpoint_of_the_same_shape_is_no_source(spoilable: Artifact, tmp_path: Path) -> None:
    folder = spoilable(CASE, "int4")
    source = Path(shutil.copytree(manifest_of(folder).source.path, tmp_path / "other"))
    weights = bytearray((source / "model.safetensors").read_bytes())
    weights[-4:] = bytes([0, 0, 64, 65])
    (source / "model.safetensors").write_bytes(weights)
    found = failed(verify(folder, against=source))
    assert found["files of the source"].detail == "model.safetensors has changed"
    assert "weights are the checkpoint's" in found


def test_an_adapter_is_added_again_and_may_neither_change_nor_go(tmp_path: Path) -> None:
    case, query = BY_NAME["llama"], "model.layers.0.self_attn.q_proj"
    source = tiny_checkpoint(case, tmp_path / "model")
    shape = tiny_model(case).get_parameter(f"{query}.weight").shape
    adapter = write_adapter(tmp_path / "adapter", factors(query, *shape))
    folder = export(source, tmp_path / "out", Request(precision="fp32", adapter=adapter, verify=False))
    assert verify(folder).status is Status.PROVEN
    manifest = manifest_of(folder)
    settings = (adapter / "adapter_config.json").read_text()
    (adapter / "adapter_config.json").write_text(settings.replace("16", "17"))
    check = source_check(manifest, open_checkpoint(source, adapter), lambda stage, done, total: None)
    assert check.detail == "adapter: adapter_config.json has changed"
    shutil.rmtree(adapter)
    with pytest.raises(InputError, match=r"whose adapter .* was made with, is gone"):
        verify(folder)
