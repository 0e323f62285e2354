"""What belongs to an artifact and what does not: only the former is ever replaced or removed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePath

from truecast.artifact import MANIFEST_NAME, Manifest, read_manifest
from truecast.errors import InputError


def require_free(out: Path, force: bool) -> None:
    """Raises InputError when `out` exists and may not be replaced."""
    if out.is_symlink() or out.name in ("", ".."):
        raise InputError(f"{out} is a link or has no name of its own; name the folder itself.")
    if not out.exists():
        return
    if not force:
        raise InputError(f"{out} already exists; choose another folder or pass --force to replace it.")
    if not out.is_dir():
        raise InputError(f"{out} is a file, not a folder; choose another place.")
    if not any(out.iterdir()):
        return
    if not (out / MANIFEST_NAME).is_file():
        raise InputError(f"{out} is not a truecast artifact, so --force will not delete it; choose another folder.")
    if others := foreign(out, _manifest(out)):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise InputError(
            f"{out} holds {others[0]}{more}, which truecast did not write, so --force will not replace it; "
            "move that away or choose another folder."
        )


def _manifest(out: Path) -> Manifest:
    try:
        return read_manifest(out)
    except InputError as error:
        raise InputError(
            f"{out / MANIFEST_NAME} cannot be read, so --force cannot tell which files of {out} are truecast's; "
            "move the folder away or choose another."
        ) from error


def require_apart(out: Path, inputs: Iterable[Path], reason: str = "which would be replaced") -> None:
    """Raises InputError when one of `inputs` lies in the existing folder `out`, directly or through a link."""
    if not out.is_dir():
        return
    for given in inputs:
        for place in _places(given.expanduser()):
            if any(out.samefile(parent) for parent in (place, *place.parents)):
                raise InputError(f"{given} lies in {out}, {reason}; choose another folder.")


def _places(given: Path) -> Iterator[Path]:
    """Where an input really is, and where links in it lead; nothing where it does not exist."""
    if given.exists():
        yield given.resolve()
    for place, folders, files in os.walk(given):
        links = (path for path in (Path(place) / name for name in (*folders, *files)) if path.is_symlink())
        yield from (path.resolve() for path in links if path.exists())


def foreign(folder: Path, manifest: Manifest) -> list[str]:
    """What lies in an artifact's folder beside the files that its manifest lists: files, links and empty folders."""
    listed = _listed(manifest)
    return [name for name, path in _entries(folder) if name not in listed or not path.is_file() or path.is_symlink()]


def remove_artifact(folder: Path) -> None:
    """Removes the files that the manifest in `folder` lists, and the folder where nothing else is left in it."""
    try:
        listed = _listed(read_manifest(folder))
    except InputError:
        listed = set()
    files = [path for name, path in _entries(folder) if name in listed and path.is_file() and not path.is_symlink()]
    for path in sorted(files, key=lambda path: path == folder / MANIFEST_NAME):  # the manifest last
        path.unlink()
    parents = {parent for path in files for parent in path.parents if parent.is_relative_to(folder)}
    for parent in sorted({folder, *parents}, reverse=True):
        with suppress(OSError):  # something else is in it
            parent.rmdir()


def _listed(manifest: Manifest) -> set[str]:
    names = {MANIFEST_NAME, manifest.graph.file, f"{manifest.graph.file}.data", *manifest.files}
    return {PurePath(name).as_posix() for name in names}


def _entries(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files, links and empty folders below a folder, by their paths in it; links are not followed."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        paths = [Path(place) / name for name in (*files, *links)]
        empty = [Path(place)] if not folders and not files and Path(place) != folder else []
        yield from ((path.relative_to(folder).as_posix(), path) for path in sorted((*paths, *empty)))
