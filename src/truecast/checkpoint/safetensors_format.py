"""The safetensors format: one file, or several named by an index.

Data flow: file → header (8 bytes of length, then JSON) → checked entries → `StoredTensor`s that map the file.

The layout and its rules (a header of at most 100 MB, tensors that follow each other without holes or overlaps) are
those of the format's own documentation, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np

from truecast.checkpoint.mapping import map_array
from truecast.checkpoint.model import Array, FileRange, Reader, StoredTensor
from truecast.errors import InputError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
SUFFIX, INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
METADATA_KEY = "__metadata__"
"""The one entry of a header that is no tensor: texts by name."""

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


@dataclass(frozen=True)
class _Entry:
    """One tensor as the header states it; `begin` and `end` are bytes from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def weights_file(folder: Path, named: str | None = None) -> Path | None:
    """The file that transformers takes the weights of `folder` from: one of safetensors, or an index of several.

    It is the one that config.json names (`named`, its `transformers_weights`), else model.safetensors, else its index;
    None where there is none (`_get_resolved_checkpoint_files` in transformers' modeling_utils.py).

    Raises:
        InputError: the named file is no safetensors file or index, is outside of the folder, or is not there.
    """
    if named is None:
        return next((folder / name for name in (SINGLE_NAME, INDEX_NAME) if (folder / name).is_file()), None)
    if not named.endswith((SUFFIX, INDEX_SUFFIX)) or not _is_inside(named):
        raise InputError(
            f"config.json of {folder} names {named!r} as its weights (transformers_weights), which is no safetensors "
            "file or index in that folder; restore config.json from the model's source."
        )
    if not (folder / named).is_file():
        raise InputError(
            f"config.json of {folder} says that its weights are in {named} (transformers_weights), which is not there; "
            "download it into the folder."
        )
    return folder / named


def read_folder_tensors(folder: Path, named: str | None = None) -> dict[str, StoredTensor] | None:
    """The tensors of the safetensors checkpoint in `folder` by name; None when it holds none. `named` as above.

    Raises:
        InputError: a file is truncated or corrupt, or the index and the shards do not agree.
    """
    path = weights_file(folder, named)
    if path is None:
        return None
    return _read_shards(folder, path) if path.name.endswith(INDEX_SUFFIX) else read_file(path)


def read_metadata(folder: Path, named: str | None = None) -> dict[str, str]:
    """The texts in the headers of the folder's safetensors files, all shards together; the last shard wins.

    Raises:
        InputError: a header cannot be read, or its metadata are not texts.
    """
    path = weights_file(folder, named)
    if path is None:
        return {}
    if not path.name.endswith(INDEX_SUFFIX):
        return _file_metadata(path)
    shards = _present_shards(folder, path, _read_weight_map(path))
    return {key: text for shard in shards for key, text in _file_metadata(folder / shard).items()}


def _file_metadata(path: Path) -> dict[str, str]:
    metadata = _read_header(path)[0].get(METADATA_KEY) or {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _corrupt(path, f"the header's {METADATA_KEY} do not map names to texts")
    return metadata


def read_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file by name, in the order of their bytes.

    Raises:
        InputError: the header or the byte ranges break the format's rules, or the file is truncated.
    """
    header, data_start = _read_header(path)
    header.pop(METADATA_KEY, None)
    entries = sorted((_parse_entry(path, *item) for item in header.items()), key=lambda entry: (entry.begin, entry.end))
    _check_layout(path, entries, path.stat().st_size - data_start)
    return {entry.name: _stored_tensor(path, data_start, entry) for entry in entries}


def _read_shards(folder: Path, index_path: Path) -> dict[str, StoredTensor]:
    """All tensors of the shards, as transformers takes them: of two by one name the one in the last shard by name."""
    weight_map = _read_weight_map(index_path)
    tensors: dict[str, StoredTensor] = {}
    for shard in _present_shards(folder, index_path, weight_map):
        tensors |= read_file(folder / shard)
    absent = next((name for name in weight_map if name not in tensors), None)
    if absent is not None:
        raise InputError(
            f"{index_path} says that tensor {absent} is in {weight_map[absent]}, but it is not; "
            "download the index and that shard again."
        )
    return tensors


def _present_shards(folder: Path, index_path: Path, weight_map: Mapping[str, str]) -> list[str]:
    shards = sorted(set(weight_map.values()))
    missing = next((name for name in shards if not (folder / name).is_file()), None)
    if missing is not None:
        raise InputError(f"{index_path} names the shard {missing}, which is not in {folder}; download it again.")
    return shards


def _read_weight_map(index_path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index_path.read_bytes())["weight_map"]
        valid = all(isinstance(name, str) and _is_inside(shard) for name, shard in weight_map.items())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise _corrupt(index_path, f"its weight_map cannot be read ({error!r})") from error
    if not valid or not weight_map:
        raise _corrupt(index_path, "its weight_map does not map tensor names to files in the same folder")
    return dict(weight_map)


def _is_inside(value: object) -> bool:
    """Whether a name is that of a file in the folder or in one of its subfolders, and leads nowhere else."""
    if not isinstance(value, str) or value in {"", "."} or "\\" in value:
        return False
    path = PurePosixPath(value)
    return not path.is_absolute() and ".." not in path.parts


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if size < LENGTH_BYTES or length > min(size - LENGTH_BYTES, MAX_HEADER_BYTES):
            raise _corrupt(path, f"its header should take {length} bytes, but the file has only {size}")
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_once)
        json.dumps(header, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _corrupt(path, "its header is not a JSON object")
    return header, LENGTH_BYTES + length


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError where it has a name twice, of which Python would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)} twice")
    return found


def _parse_entry(path: Path, name: str, value: Any) -> _Entry:
    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        whole = all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise _corrupt(path, f"the header's entry of tensor {name} lacks dtype, shape or data_offsets") from error
    if not whole:
        raise _corrupt(path, f"the header's entry of tensor {name} has a shape or an offset that is no whole number")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(
            f"{path}: tensor {name} has type {dtype}, which is not supported; save it as F32, F16 or BF16."
        )
    if math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
        raise _corrupt(path, f"tensor {name} of shape {list(shape)} and type {dtype} cannot take {end - begin} bytes")
    return _Entry(name, dtype, shape, begin, end)


def _check_layout(path: Path, entries: list[_Entry], data_bytes: int) -> None:
    """Check that the tensors follow each other from the header to the end of the file."""
    position = 0
    for entry in entries:
        if entry.end > data_bytes:
            raise _corrupt(path, f"tensor {entry.name} ends at byte {entry.end} of {data_bytes} that are there")
        if entry.begin != position:
            what = "overlaps the tensor before it" if entry.begin < position else "leaves a hole before it"
            raise _corrupt(path, f"tensor {entry.name} {what} (byte {entry.begin}, expected {position})")
        position = entry.end
    if position != data_bytes:
        raise _corrupt(path, f"{data_bytes - position} bytes after the last tensor belong to none")


def _stored_tensor(path: Path, data_start: int, entry: _Entry) -> StoredTensor:
    location = FileRange(path, data_start + entry.begin, entry.end - entry.begin)
    dtype = DTYPES[entry.dtype]
    reader = _reader(location, dtype, entry.shape)
    return StoredTensor(entry.name, entry.shape, dtype, entry.dtype, location, reader, verbatim=True)


def _reader(location: FileRange, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Reader:
    row_shape = shape[1:]
    row_bytes = math.prod(row_shape) * dtype.itemsize

    def read(start: int, stop: int) -> Array:
        return map_array(location.path, location.offset + start * row_bytes, dtype, (stop - start, *row_shape))

    return read


def _corrupt(path: Path, why: str) -> InputError:
    return InputError(f"{path} is truncated or corrupt: {why}; download or save it again.")
