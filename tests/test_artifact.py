"""The published folder: its manifest is read back as written, and publishing never loses what was there."""

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
    publish,
    read_manifest,
    reject,
    require_free,
    sha256_of,
    staging_folder,
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
    files={"model.onnx": 64 * "c"},
    certificate=Certificate(
        status=Status.PROVEN, checks=[Check(tier="parity", name="exact", passed=True, measured=1e-6, limit=1e-4)]
    ),
)


def folder(path: Path, content: str = "old") -> Path:
    """A folder that is an artifact, with a file that tells which."""
    path.mkdir(parents=True)
    write_manifest(path, MANIFEST)
    (path / "content").write_text(content)
    return path


def content(path: Path) -> str:
    return (path / "content").read_text()


# Manifest -------------------------------------------------------------------------------------------------------------


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_manifest(folder(tmp_path / "out")) == MANIFEST


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


# What may be replaced -------------------------------------------------------------------------------------------------


def test_a_free_place_is_free(tmp_path: Path) -> None:
    require_free(tmp_path / "new" / "out", force=False)


def test_what_exists_stays_unless_forced(tmp_path: Path) -> None:
    out = folder(tmp_path / "out")
    with pytest.raises(InputError, match="already exists; choose another folder or pass --force"):
        require_free(out, force=False)
    require_free(out, force=True)


def test_an_empty_folder_may_be_replaced_by_force(tmp_path: Path) -> None:
    require_free(tmp_path, force=True)


def test_a_folder_that_is_no_artifact_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not a truecast artifact, so --force will not delete it"):
        require_free(tmp_path, force=True)


@pytest.mark.parametrize("force", [True, False])
def test_a_file_is_never_replaced(force: bool, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError):
        require_free(tmp_path / "out", force)


@pytest.mark.parametrize("target", ["out", "nowhere"])
def test_a_link_is_never_replaced(target: str, tmp_path: Path) -> None:
    folder(tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(InputError, match="is a link"):
        require_free(tmp_path / "link", force=True)


@pytest.mark.parametrize("name", [".", ".."])
def test_a_place_without_a_name_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder(tmp_path / "out"))
    with pytest.raises(InputError, match="name the folder itself"):
        require_free(Path(name), force=True)


# Staging and publishing -----------------------------------------------------------------------------------------------


def test_staging_is_an_empty_folder_beside_out(tmp_path: Path) -> None:
    staging = staging_folder(tmp_path / "new" / "out")
    assert staging.parent == tmp_path / "new"
    assert list(staging.iterdir()) == []


def test_staging_forgets_what_an_earlier_run_left(tmp_path: Path) -> None:
    (staging_folder(tmp_path / "out") / "half").write_text("written")
    assert list(staging_folder(tmp_path / "out").iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"file cannot be written to \(Not a directory\); choose another folder"):
        staging_folder(tmp_path / "file" / "out")


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def test_publishing_moves_the_folder_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    out = publish(folder(tmp_path / ".out.partial", "new"), tmp_path / "out")
    assert content(out) == "new"
    assert names(tmp_path) == ["out"]


def test_publishing_replaces_an_artifact(tmp_path: Path) -> None:
    folder(tmp_path / "out", "old")
    publish(folder(tmp_path / ".out.partial", "new"), tmp_path / "out")
    assert content(tmp_path / "out") == "new"
    assert names(tmp_path) == ["out"]


def test_publishing_over_an_interrupted_publishing_works(tmp_path: Path) -> None:
    folder(tmp_path / ".out.old", "older")
    folder(tmp_path / "out", "old")
    publish(folder(tmp_path / ".out.partial", "new"), tmp_path / "out")
    assert content(tmp_path / "out") == "new"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [".out.partial", "out"])
def test_when_publishing_fails_the_old_artifact_is_back(
    failure: type[BaseException], at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "out", "old")
    staging, rename = folder(tmp_path / ".out.partial", "new"), Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == at:
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(failure):
        publish(staging, tmp_path / "out")
    assert content(tmp_path / "out") == "old"


def test_a_rejected_folder_is_kept_beside_out(tmp_path: Path) -> None:
    folder(tmp_path / "out", "old")
    folder(tmp_path / "out.rejected", "rejected before")
    rejected = reject(folder(tmp_path / ".out.partial", "new"), tmp_path / "out")
    assert (content(tmp_path / "out"), content(rejected)) == ("old", "new")
    assert names(tmp_path) == ["out", "out.rejected"]
