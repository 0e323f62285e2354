"""Artifacts small enough to be written by hand, and what is in a folder."""

from __future__ import annotations

from pathlib import Path

from tests.test_artifact import MANIFEST
from truecast.artifact import Certificate, Check, Manifest, Status, write_manifest

FAILED = Certificate(status=Status.FAILED, checks=[Check(tier="parity", name="exact", passed=False)])
REJECTED = MANIFEST.model_copy(update={"certificate": FAILED})


def fill(folder: Path, content: str = "new", manifest: Manifest = MANIFEST) -> Manifest:
    """Writes the only file of the artifact but its manifest."""
    (folder / "content").write_text(content)
    return manifest


def artifact(path: Path, content: str = "old", manifest: Manifest = MANIFEST) -> Path:
    """A published artifact, made without truecast's publishing."""
    path.mkdir(parents=True)
    write_manifest(path, fill(path, content, manifest))
    return path


def content(path: Path) -> str:
    return (path / "content").read_text()


def state(folder: Path) -> dict[str, str]:
    """Everything below a folder: the text of files, where links lead, and folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = f"→ {path.readlink()}" if path.is_symlink() else path.read_text() if path.is_file() else "folder"
        found[path.relative_to(folder).as_posix()] = kind
    return found
