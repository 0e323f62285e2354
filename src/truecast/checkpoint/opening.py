"""From a path to a `Checkpoint`: which format is it, and is it one we read.

Data flow: path → kind of path (GGUF file, Hugging Face folder, something refused) → the format's own opener.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from truecast.checkpoint.adapters import ADAPTER_CONFIG, open_adapter
from truecast.checkpoint.folder import open_folder
from truecast.checkpoint.model import Checkpoint
from truecast.checkpoint.pickles import PICKLE_SUFFIXES, refuse_pickle
from truecast.checkpoint.safetensors_format import INDEX_NAME, SUFFIX
from truecast.errors import InputError

GGUF_MAGIC = b"GGUF"


def open_checkpoint(path: Path | str, adapter: Path | str | None = None) -> Checkpoint:
    """Open the checkpoint at `path`: a Hugging Face folder, a GGUF file, or a folder that holds one GGUF model.

    Reads headers and metadata only; tensors are read when asked for. `adapter` is the folder of an adapter that belongs
    to it; one that lies in the checkpoint's own folder does, too, as it does for transformers.

    Raises:
        InputError: a path is missing, unreadable, of an unknown format, truncated or corrupt.
    """
    if path == "":
        raise InputError("No checkpoint is given; give a Hugging Face folder or a GGUF file on this machine.")
    path = Path(path).expanduser()
    try:
        checkpoint = _open(path)
        place = adapter_of(path, adapter)
        return checkpoint if place is None else replace(checkpoint, adapter=open_adapter(place))
    except PermissionError as error:
        raise InputError(f"{error.filename or path} may not be read by this user; change its permissions.") from error


def adapter_of(path: Path, asked: Path | str | None) -> Path | None:
    """The adapter's folder: the one asked for, or the checkpoint's own where an adapter lies in it; else None.

    Raises:
        InputError: it is both, or the one asked for is no folder.
    """
    beside = path if (path / ADAPTER_CONFIG).is_file() else None
    if asked is None:
        return beside
    place = Path(asked).expanduser()
    if beside is not None and not (place.exists() and place.samefile(beside)):
        raise InputError(
            f"{path} has an adapter of its own; move its {ADAPTER_CONFIG} elsewhere to use --adapter {asked}."
        )
    if place.is_file() and place.suffix == ".gguf":
        raise InputError(
            f"--adapter {asked} is an adapter of llama.cpp, which is not read; give the folder that peft's "
            "save_pretrained() wrote."
        )
    if not place.is_dir():
        raise InputError(f"--adapter {asked} is no folder; give the one that peft's save_pretrained() wrote.")
    return beside or place


def _open(path: Path) -> Checkpoint:
    if path.is_dir():
        return _open_directory(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give a Hugging Face folder or a GGUF file on this machine.")
    if not path.is_file():  # which may never end
        raise InputError(f"{path} is a pipe, a socket or a device; give a Hugging Face folder or a GGUF file.")
    return _open_file(path)


def _open_file(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        magic = file.read(len(GGUF_MAGIC))
    if magic == GGUF_MAGIC or path.suffix == ".gguf":
        return _open_gguf(path)
    if path.suffix in PICKLE_SUFFIXES:
        raise refuse_pickle(path.parent, path.name)
    if path.suffix == ".safetensors":
        raise InputError(f"{path} is one file of a checkpoint; give the folder that holds it and its config.json.")
    raise InputError(f"{path} is neither a GGUF file nor a folder; give a Hugging Face folder or a GGUF file.")


def _open_directory(folder: Path) -> Checkpoint:
    files = sorted(folder.glob("*.gguf"))
    if not files or any(folder.glob(f"*{SUFFIX}")) or (folder / INDEX_NAME).is_file():
        return open_folder(folder)
    if len(files) > 1 and not _parts_of_one(files):
        names = ", ".join(file.name for file in files)
        raise InputError(f"{folder} holds several GGUF files ({names}); give the path of one of them.")
    return _open_gguf(files[0])


def _parts_of_one(files: Sequence[Path]) -> bool:
    # Not at the top, as in `_open_gguf`.
    from truecast.checkpoint.gguf.parts import are_parts_of_one

    return are_parts_of_one(files)


def _open_gguf(path: Path) -> Checkpoint:
    # Importing the gguf package takes 0.4 s, which a safetensors checkpoint need not pay.
    from truecast.checkpoint.gguf.opening import open_gguf

    return open_gguf(path)
