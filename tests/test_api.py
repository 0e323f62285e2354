"""The public API: what `export`, `open` and `inspect` give, and what importing them costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import truecast
from tests.test_artifact import MANIFEST
from truecast import exporting
from truecast.artifact import Certificate, Manifest, Status, write_manifest
from truecast.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_manifest(tmp_path, MANIFEST)
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    """What the export behind `truecast.export` was asked for; it gives the artifact `folder`."""
    given: dict[str, Any] = {}

    def export(source: Path, out: Path, request: truecast.Request, progress: Any) -> Path:
        given.update(source=source, out=out, request=request, progress=progress)
        return folder

    monkeypatch.setattr(exporting, "export", export)
    return given


def test_every_option_of_export_reaches_the_request(asked: dict[str, Any], pristine: Path) -> None:
    options: dict[str, Any] = {
        "target": "genai",
        "precision": "int8",
        "block_size": 64,
        "activations": "float",
        "link_weights": True,
        "verify": False,
        "force": True,
        "trust_remote_code": True,
    }
    truecast.export(pristine, "out", progress=print, **options)
    assert asked == {
        "source": pristine,
        "out": "out",
        "request": truecast.Request(**options),
        "progress": print,
    }


def test_the_defaults_of_export_are_those_of_a_request(asked: dict[str, Any], pristine: Path) -> None:
    truecast.export(pristine, "out", precision="fp32")
    assert asked["request"] == truecast.Request(precision="fp32")


def test_options_count_before_the_request_that_they_come_with(asked: dict[str, Any], pristine: Path) -> None:
    truecast.export(
        pristine, "out", truecast.Request(precision="int4", target="genai"), precision="fp32", keep=["a=int8"]
    )
    assert asked["request"] == truecast.Request(precision="fp32", target="genai", keep=("a=int8",))


def test_the_signature_of_export_names_every_option() -> None:
    parameters = inspect.signature(truecast.export).parameters
    assert {one.name: one.default for one in fields(truecast.Request)}.items() <= {
        name: one.default for name, one in parameters.items()
    }.items()
    assert not any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    with pytest.raises(TypeError, match="precison"):
        truecast.export("checkpoint", "out", precison="fp32")


def test_without_a_precision_the_recommended_one_is_taken(asked: dict[str, Any], pristine: Path) -> None:
    truecast.export(pristine, "out")
    assert asked["request"].precision == truecast.inspect(pristine).recommendation.precision == "int4"


def undigested(manifest: Manifest) -> Manifest:
    """The manifest without the digest that it gets when it is written."""
    certificate = manifest.certificate.model_copy(update={"manifest_sha256": ""})
    return manifest.model_copy(update={"certificate": certificate})


def test_export_gives_the_artifact(asked: dict[str, Any], pristine: Path, folder: Path) -> None:
    artifact = truecast.export(pristine, "out")
    assert isinstance(artifact, truecast.Artifact)
    assert (artifact.folder, undigested(artifact.manifest)) == (folder, MANIFEST)


def test_open_reads_the_manifest_and_loads_nothing(folder: Path) -> None:
    artifact = truecast.open(str(folder), provider="cpu", threads=1)
    assert undigested(artifact.manifest) == MANIFEST
    assert (artifact.provider, artifact.threads) == ("cpu", 1)
    assert repr(artifact) == f"<Artifact {folder}: int4 for onnxruntime, proven>"


def test_open_refuses_what_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a truecast artifact"):
        truecast.open(tmp_path)


def test_verify_proves_against_what_it_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def verify(folder: Path, against: Path | None, progress: Any, **others: Any) -> Certificate:
        calls.append((folder, against, progress))
        return Certificate(status=Status.PROVEN)

    monkeypatch.setattr("truecast.proof.verify", verify)
    assert truecast.open(folder).verify().status is Status.PROVEN
    truecast.open(folder).verify("other", print)
    assert calls == [(folder, None, None), (folder, Path("other"), print)]


def test_the_model_is_loaded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[Any, ...]] = []
    monkeypatch.setattr("truecast.runtime.model.TextModel.open", lambda *args: opened.append(args) or object())
    artifact = truecast.open(folder, threads=2)
    assert artifact.model is artifact.model
    assert opened == [(folder, "cpu", 2)]


def test_the_package_offers_what_it_promises_and_no_more() -> None:
    assert all(hasattr(truecast, name) for name in truecast.__all__)
    with pytest.raises(AttributeError, match="no attribute 'transmogrify'"):
        truecast.transmogrify  # noqa: B018


def test_opening_and_inspecting_import_no_torch(folder: Path, pristine: Path) -> None:
    code = (
        "import sys, truecast; truecast.open(sys.argv[1]); truecast.inspect(sys.argv[2]); "
        "print({'torch', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code, folder, pristine], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "set()\n", "")
