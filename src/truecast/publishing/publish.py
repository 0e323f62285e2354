"""Publishing: a filled folder becomes OUT, in one rename, or is kept as OUT.rejected."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from truecast.artifact import Check, Manifest, Status, read_manifest, write_manifest
from truecast.errors import InputError, ProofError
from truecast.publishing.owned import foreign, remove_artifact, require_free
from truecast.publishing.staging import ARTIFACT, REPLACED, staging
from truecast.publishing.system import exchange


def published(out: Path, make: Callable[[Path], Manifest], force: bool = False) -> Path:
    """Has `make` fill a folder beside `out`, and renames it to `out`, or to OUT.rejected where a check failed.

    Beside the folder that `make` gets, in its parent, is room for scratch that goes with it. `force` replaces an
    artifact that is at `out`; without it, what has come there meanwhile stays.

    Raises:
        InputError: what `make` raises, the disk does not take the files, or `out` is taken; nothing is left behind.
        ProofError: a check of the manifest's certificate failed.
    """
    with staging(out, alone=not force) as folder:
        try:
            manifest = make(folder / ARTIFACT)
            write_manifest(folder / ARTIFACT, manifest)
            if manifest.certificate.status is not Status.FAILED:
                return publish(folder, out, force)
            rejected = reject(folder / ARTIFACT, out)
        except OSError as error:
            raise InputError(f"{out} could not be written: {error.strerror or error}.") from error
    failed = [check for check in manifest.certificate.checks if not check.passed]
    raise ProofError(f"The result is not the same model: {_sentence(failed)} It is kept in {rejected}.", rejected)


def _sentence(failed: list[Check]) -> str:
    first = failed[0]
    more = f" ({len(failed)} checks failed)" if len(failed) > 1 else ""
    return (
        f"{first.tier}/{first.name} measured {first.measured} {first.unit}, limit {first.limit}{more}; {first.detail}."
    )


def publish(folder: Path, out: Path, force: bool) -> Path:
    """Renames the artifact in a run's `folder` to `out`; by `force`, what is there moves into `folder`.

    Whenever the process ends, `out` is the old artifact or the new one. Raises InputError when `out` may not be
    replaced, and leaves it as it is.
    """
    require_free(out, force)
    if out.exists() and any(out.iterdir()):
        _replace(folder, out)
        return out
    with suppress(OSError):
        out.rmdir()  # Windows renames onto no folder, be it empty
    return (folder / ARTIFACT).rename(out)  # in one step, and never onto a folder that has something in it


def _replace(folder: Path, out: Path) -> None:
    new, old = folder / ARTIFACT, folder / REPLACED
    _flush(new)
    new.rename(old)
    if exchange(old, out):
        if foreign(old, read_manifest(old)):  # somebody put something there in the last moment
            exchange(old, out)
            require_free(out, force=True)
        return
    old.rename(new)
    out.rename(old)  # a run that ends here is mended by `discard`
    new.rename(out)


def _flush(folder: Path) -> None:
    """Waits until the files are on the disk: only then may a rename make the old ones go."""
    for path in folder.rglob("*"):
        with suppress(PermissionError):  # linked weights, which may be read only and are on the disk already
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())


def reject(artifact: Path, out: Path) -> Path:
    """Keeps a folder whose proof failed as OUT.rejected and returns where it is; an earlier one is replaced.

    What is there and is nothing that truecast rejected stays; the next free of OUT.rejected-2, … is taken then.
    """
    for rejected in _names(out):
        if _was_rejected(rejected):
            remove_artifact(rejected)
        if not os.path.lexists(rejected):
            return artifact.rename(rejected)
    raise AssertionError


def _names(out: Path) -> Iterator[Path]:
    yield out.with_name(f"{out.name}.rejected")
    number = 2
    while True:
        yield out.with_name(f"{out.name}.rejected-{number}")
        number += 1


def _was_rejected(folder: Path) -> bool:
    try:
        manifest = read_manifest(folder)
    except InputError:
        return False
    return manifest.certificate.status is Status.FAILED and not folder.is_symlink() and not foreign(folder, manifest)
