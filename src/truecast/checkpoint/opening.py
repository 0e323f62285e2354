"""From a path to a `Checkpoint`: which format is it, and is it one we read.

Data flow: path → kind of path (GGUF file, Hugging Face folder, something refused) → the format's own opener.
"""

from __future__ import annotations

from pathlib import Path

from truecast.checkpoint.folder import open_folder
from truecast.checkpoint.model import Checkpoint
from truecast.checkpoint.pickles import PICKLE_SUFFIXES, refuse_pickle
from truecast.errors import InputError

GGUF_MAGIC = b"GGUF"


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open the checkpoint at `path`: a Hugging Face folder, a GGUF file, or a folder that holds one GGUF file.

    Reads headers and metadata only; tensors are read when asked for.

    Raises:
        InputError: the path is missing, unreadable, of an unknown format, truncated or corrupt.
    """
    path = Path(path).expanduser()
    try:
        return _open(path)
    except PermissionError as error:
        raise InputError(f"{error.filename or path} may not be read by this user; change its permissions.") from error


def require_float(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose weights were quantized by a library (config.json names a `quantization_config`).

    Raises:
        InputError: the checkpoint is quantized.
    """
    quantization = checkpoint.config.get("quantization_config")
    if quantization is None:
        return
    method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
    raise InputError(
        f"{checkpoint.path} is already quantized (quant_method {method}), which this version does not convert yet; "
        "give the float checkpoint it was made from."
    )


def _open(path: Path) -> Checkpoint:
    if path.is_dir():
        return _open_directory(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give a Hugging Face folder or a GGUF file on this machine.")
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
    if not files or any(folder.glob("*.safetensors")):
        return open_folder(folder)
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise InputError(f"{folder} holds several GGUF files ({names}); give the path of one of them.")
    return _open_gguf(files[0])


def _open_gguf(path: Path) -> Checkpoint:
    # Importing the gguf package takes 0.4 s, which a safetensors checkpoint need not pay.
    from truecast.checkpoint.gguf_format import open_gguf

    return open_gguf(path)
