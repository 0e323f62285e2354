"""The folder of one run, beside OUT: what becomes OUT is built there, so that publishing it is a rename.

.OUT.partial-XXXXXXXXXXXX/   the last part is random
    claim                    who made the folder; locked as long as the run lives
    artifact/                what becomes OUT
    replaced/                what was at OUT, once it was replaced
    …                        scratch of the run

A lock ends with its process, however that ends. So a folder whose claim is true and free was left by a run that was
killed, and the next run into the same OUT removes it. Whatever else has such a name is somebody's, and stays.
"""

from __future__ import annotations

import json
import platform
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from truecast.errors import InputError
from truecast.publishing.owned import remove_artifact
from truecast.publishing.system import lock

CLAIM, ARTIFACT, REPLACED = "claim", "artifact", "replaced"


@contextmanager
def staging(out: Path, alone: bool) -> Iterator[Path]:
    """A new folder beside `out` for this run, with an empty `artifact` in it; the folder goes when the context ends.

    Raises InputError when it cannot be made, or, if `alone`, while another run has one for the same `out`.
    """
    folder = out.with_name(f"{_prefix(out)}{secrets.token_hex(6)}")
    made = [parent for parent in folder.parents if not parent.exists()]
    claim: IO[str] | None = None
    try:  # from before the folder is there: an interruption may come at any moment
        try:
            _clear(out, alone)
            folder.mkdir(parents=True)
            claim = _claimed(folder)
            (folder / ARTIFACT).mkdir()
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{out.parent} cannot be written to ({reason}); choose another folder.") from error
        yield folder
    except InputError as error:  # the user knows of OUT only
        error.args = (str(error).replace(str(folder / ARTIFACT), str(out)),)
        raise
    finally:
        if claim is not None:
            claim.close()
        discard(folder, out)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


def discard(folder: Path, out: Path) -> None:
    """Removes the folder of a run, but for files in `replaced` that the manifest there does not list.

    Where two folders cannot be exchanged in one step, a run may end when the old artifact has left `out` and the new is
    not there yet: then the old goes back.
    """
    replaced, artifact = folder / REPLACED, folder / ARTIFACT
    if artifact.exists() and replaced.exists() and not out.exists():
        replaced.rename(out)
    if replaced.exists():
        remove_artifact(replaced)
    for scratch in folder.glob("*"):  # the claim last, by which the rest is known
        if scratch.name not in (CLAIM, REPLACED):
            shutil.rmtree(scratch, ignore_errors=True)
    if not replaced.exists():
        shutil.rmtree(folder, ignore_errors=True)


def _prefix(out: Path) -> str:
    return f".{out.name}.partial-"


def _facts(folder: Path) -> dict[str, object]:
    """What makes a folder known again; a copy of it has another number on the disk."""
    return {"made_by": "truecast export", "folder": folder.name, "inode": folder.stat().st_ino, "host": platform.node()}


def _claimed(folder: Path) -> IO[str]:
    """Says in `folder` whose it is, and locks that; the caller closes the file."""
    file = (folder / CLAIM).open("x", encoding="utf-8")
    with suppress(OSError):  # no locks on this file system: nobody will take the folder for left over
        lock(file)
    file.seek(0)
    json.dump(_facts(folder), file)
    file.flush()
    return file


def _clear(out: Path, alone: bool) -> None:
    """Removes what killed runs into `out` left; raises InputError, if `alone`, while one is still at work."""
    left = out.parent.iterdir() if out.parent.is_dir() else ()
    for folder in [path for path in left if path.name.startswith(_prefix(out)) and _is_ours(path)]:
        with (folder / CLAIM).open("r+", encoding="utf-8") as claim:
            try:
                lock(claim)
            except BlockingIOError:
                if alone:
                    raise InputError(
                        f"Another export is writing {out}; wait for it, or choose another folder."
                    ) from None
                continue
            except OSError:
                continue
        discard(folder, out)


def _is_ours(folder: Path) -> bool:
    try:
        said = json.loads((folder / CLAIM).read_text(encoding="utf-8"))
        return not folder.is_symlink() and bool(said == _facts(folder))
    except (OSError, ValueError):
        return False
