"""The manifest of a published folder is read back as it was written."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from truecast.artifact import (
    SCHEMA_VERSION,
    Certificate,
    Check,
    GraphInfo,
    Manifest,
    Source,
    Status,
    TensorInfo,
    WeightInfo,
    read_manifest,
    sha256_of,
    write_manifest,
)
from truecast.errors import InputError

MANIFEST = Manifest(
    truecast="0.1.0",
    source=Source(path="/models/tiny", format="safetensors", sha256={"model.safetensors": 64 * "a"}),
    target="onnxruntime",
    dialect="ort",
    provider="cpu",
    precision="int4",
    settings={"block_size": 32, "activations": "int8"},
    graph=GraphInfo(
        opsets={"": 21},
        ir_version=10,
        inputs=[TensorInfo(name="input_ids", dtype="int64", shape=["batch_size", 1])],
        outputs=[],
        traced={"attention": "the model does its attention by itself"},
    ),
    weights=[WeightInfo(initializers=["w"], sources=["a", "b"], packing="dense float32", sha256=64 * "b")],
    ignored_tensors={"inv_freq": "a rotary table"},
    files={"model.onnx": 64 * "c", "content": 64 * "d"},
    certificate=Certificate(
        status=Status.PROVEN, checks=[Check(tier="parity", name="exact", passed=True, measured=1e-6, limit=1e-4)]
    ),
)


def folder(path: Path, content: str = "old") -> Path:
    """A folder that is an artifact, with a file that tells which one."""
    path.mkdir(parents=True)
    write_manifest(path, MANIFEST)
    (path / "content").write_text(content)
    return path


def content(path: Path) -> str:
    return (path / "content").read_text()


# Manifest -------------------------------------------------------------------------------------------------------------


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    read = read_manifest(folder(tmp_path / "out"))
    assert len(read.certificate.manifest_sha256) == 64
    assert read.model_copy(update={"certificate": MANIFEST.certificate}) == MANIFEST
    assert read.certificate.model_copy(update={"manifest_sha256": ""}) == MANIFEST.certificate


def test_the_same_manifest_is_the_same_bytes(tmp_path: Path) -> None:
    first, second = folder(tmp_path / "first"), folder(tmp_path / "second")
    assert (first / "truecast.json").read_bytes() == (second / "truecast.json").read_bytes()


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a truecast artifact"):
        read_manifest(tmp_path)


def changed(path: Path, **changes: object) -> Path:
    """An artifact whose truecast.json has other values."""
    file = folder(path) / "truecast.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | changes))
    return path


def test_a_newer_schema_asks_for_an_update(tmp_path: Path) -> None:
    path = changed(tmp_path / "out", schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(InputError, match=f"schema version {SCHEMA_VERSION + 1}.*; update truecast"):
        read_manifest(path)


def test_a_newer_schema_with_fields_of_its_own_asks_for_an_update_too(tmp_path: Path) -> None:
    path = changed(tmp_path / "out", schema_version=SCHEMA_VERSION + 1, invented="later")
    with pytest.raises(InputError, match="update truecast"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("changes", "where"),
    [({"precision": 4}, "precision"), ({"certificate": {"status": "sure"}}, "certificate.status"), ({"x": 1}, "x")],
)
def test_a_field_that_is_wrong_is_named(changes: dict[str, object], where: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"truecast.json cannot be read \({where}: .*export the model again"):
        read_manifest(changed(tmp_path / "out", **changes))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_damaged_json_is_refused(damage: bytes, tmp_path: Path) -> None:
    path = folder(tmp_path / "out")
    (path / "truecast.json").write_bytes(damage)
    with pytest.raises(InputError, match=r"truecast.json cannot be read"):
        read_manifest(path)


def test_a_manifest_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        MANIFEST.precision = "fp32"  # type: ignore[misc]


@pytest.mark.parametrize("size", [0, 1, (1 << 22) + 1])
def test_the_hash_of_a_file_is_over_all_of_it(size: int, tmp_path: Path) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(data[:size])
    assert sha256_of(tmp_path / "file") == sha256(data[:size]).hexdigest()
