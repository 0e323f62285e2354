"""What decides how a model is used is compared with the source: files, token ids, the manifest as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.proof.conftest import Artifact
from tests.proof.planting import change_manifest, manifest_of, rehash
from truecast.artifact import MANIFEST_NAME
from truecast.checkpoint import open_checkpoint
from truecast.proof.files import data_files, files_check, source_check
from truecast.proof.side_facts import side_checks

CASE = "gemma3_text"


def faults(folder: Path, source: Path | None = None) -> str:
    """What the checks of files say, all hashes of the artifact renewed; empty where all is well."""
    rehash(folder)
    manifest = manifest_of(folder)
    checkpoint = open_checkpoint(source or manifest.source.path)
    found = [files_check(folder, manifest, data_files(folder, manifest), lambda *_: None)]
    found += [source_check(manifest, checkpoint, lambda *_: None), *side_checks(folder, checkpoint, manifest)[0]]
    return "; ".join(check.detail for check in found if not check.passed)


def edit(name: str, **changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def state(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        change_manifest(folder, graph=manifest_of(folder).graph.model_copy(update=changes))

    return change


def forget(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        listed = manifest_of(folder).files
        change_manifest(folder, files={key: value for key, value in listed.items() if key != name})

    return change


def test_a_sound_artifact_has_no_faults(spoilable: Artifact) -> None:
    assert faults(spoilable(CASE, "int4")) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edit("config.json", rope_theta=5.0), "config.json differs in rope_theta"),
        (edit("tokenizer_config.json", add_bos_token=None), "tokenizer_config.json differs"),
        (edit("tokenizer.json", added_tokens=[]), "tokenizer.json differs"),
        (forget("tokenizer.json"), "tokenizer.json is missing"),
        (state(eos_token_ids=[65]), "eos_token_ids [65] instead of"),
        (state(eos_token_ids=[]), "eos_token_ids [] instead of"),
        (state(ids_before_text=[1]), "ids_before_text [1] instead of []"),
        (state(context_length=10**6), "context_length 1000000 instead of"),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("x"),
            "chat_template.jinja is none of the source's",
        ),
        (lambda folder: change_manifest(folder, files={}), "config.json was added"),
    ],
)
def test_what_differs_from_the_source_is_said_though_all_hashes_are_renewed(
    change: Callable[[Path], None], said: str, spoilable: Artifact
) -> None:
    folder = spoilable(CASE, "int4")
    change(folder)
    assert said in faults(folder)


def test_a_file_for_people_is_no_fault(spoilable: Artifact) -> None:
    folder = spoilable(CASE, "int4")
    (folder / "README.md").write_text("x")
    assert faults(folder) == ""


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_a_source_whose_files_changed_is_said(name: str, spoilable: Artifact, tmp_path: Path) -> None:
    folder = spoilable(CASE, "int4")
    source = tmp_path / "source"
    source.mkdir()
    for path in Path(manifest_of(folder).source.path).iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (source / name).write_text(json.dumps({**json.loads((source / name).read_text()), "eos_token_id": 9}))
    assert f"{name} has changed" in faults(folder, source)


def test_an_edited_manifest_no_longer_has_its_digest(spoilable: Artifact) -> None:
    folder = spoilable(CASE, "int4")
    path = folder / MANIFEST_NAME
    path.write_text(path.read_text().replace('"precision": "int4"', '"precision": "int8"'))
    manifest = manifest_of(folder)
    check = files_check(folder, manifest, data_files(folder, manifest), lambda *_: None)
    assert check.detail == f"{MANIFEST_NAME} has changed"
