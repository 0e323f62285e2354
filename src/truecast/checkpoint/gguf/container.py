"""The GGUF container: metadata and the places of the tensors, without decoding either.

Data flow: mapped file → `_Cursor` walks header, metadata and tensor entries → `Container`.

The gguf package has a reader too, but it makes Python objects of every vocabulary entry: 11 s for the 262144 tokens of
a Gemma file, where walking over them takes 0.1 s. The package still gives the constants and the decoders.

Layout (version 2 and 3, little endian), from https://github.com/ggml-org/ggml/blob/master/docs/gguf.md:
magic, u32 version, u64 tensors, u64 pairs; pairs of string key, u32 type, value; tensor entries of string name, u32
rank, u64 dimensions (fastest first), u32 type, u64 offset; then the data, from the next multiple of the alignment on.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGUF_MAGIC,
    GGMLQuantizationType,
    GGUFValueType,
)

from truecast.errors import InputError

VERSIONS = (2, 3)
MAX_RANK = 4
"""ggml tensors have at most four dimensions (GGML_MAX_DIMS)."""

_SCALARS: Mapping[int, str] = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}


@dataclass(frozen=True)
class StringArray:
    """An array of `count` strings that begins at byte `offset` of `path`; decoded when asked for."""

    path: Path
    offset: int
    count: int

    def __len__(self) -> int:
        return self.count

    def decode(self) -> list[str]:
        """The strings; bytes that are not UTF-8 become U+FFFD, as in the tools that write these files."""
        with _mapped(self.path) as data:
            spans = _Cursor(self.path, data, self.offset).strings(self.count)
            return [data[begin:end].decode("utf-8", errors="replace") for begin, end in spans]


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file: `shape` slowest dimension first, `offset` and `nbytes` in bytes within `path`."""

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Container:
    """A GGUF file, read but not decoded.

    `metadata` values are bool, int, float, str, numeric NumPy arrays or `StringArray`. Of a model in several files,
    `path` is the one that holds the metadata; each tensor knows its own.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]


def read_container(path: Path) -> Container:
    """Read the header, metadata and tensor entries of the GGUF file at `path`.

    Raises:
        InputError: not a GGUF file of a known version, truncated, or corrupt.
    """
    if path.stat().st_size < struct.calcsize("<IIQQ"):
        raise _corrupt(path, "it is shorter than a header")
    with _mapped(path) as data:
        return _read(path, _Cursor(path, data, 0), len(data))


def _read(path: Path, cursor: _Cursor, size: int) -> Container:
    magic, version = cursor.take("<I"), cursor.take("<I")
    if magic != GGUF_MAGIC:
        raise _corrupt(path, "it does not begin with GGUF")
    if version not in VERSIONS:
        raise InputError(f"{path} is GGUF version {version}; convert it to version 3 with a current llama.cpp.")
    tensor_count, pair_count = cursor.take("<Q"), cursor.take("<Q")
    metadata = dict(_take_pair(cursor) for _ in range(pair_count))
    raw = [_take_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0:
        raise _corrupt(path, f"its alignment is {alignment!r}")
    data_start = -(-cursor.position // alignment) * alignment
    tensors = {entry.name: _place(path, entry, data_start, size) for entry in raw}
    if len(tensors) != tensor_count:
        raise _corrupt(path, "two tensors have the same name")
    return Container(path, metadata, tensors)


class _Cursor:
    """A position in the mapped file; every step is checked against its end."""

    def __init__(self, path: Path, data: mmap.mmap, position: int) -> None:
        self.path, self.data, self.position = path, data, position

    def take(self, layout: str) -> Any:
        """The next scalar of the `struct` layout given."""
        try:
            (value,) = struct.unpack_from(layout, self.data, self.position)
        except struct.error as error:
            raise _corrupt(self.path, f"it ends at byte {len(self.data)} in the middle of its header") from error
        self.position += struct.calcsize(layout)
        return value

    def skip(self, length: int) -> int:
        """Step over `length` bytes; the position before."""
        before = self.position
        if length > len(self.data) - before:
            raise _corrupt(self.path, f"a value at byte {before} needs {length} bytes, which are not there")
        self.position = before + length
        return before

    def take_bytes(self) -> bytes:
        """The next string: a u64 length and its bytes."""
        begin = self.skip(self.take("<Q"))
        return self.data[begin : self.position]

    def strings(self, count: int) -> Iterator[tuple[int, int]]:
        """Where each of the next `count` strings begins and ends, of which a file has some 300,000."""
        data, size, length = self.data, len(self.data), struct.Struct("<Q")
        for _ in range(count):
            begin = self.position + length.size
            end = begin + length.unpack_from(data, self.position)[0] if begin <= size else begin
            if end > size:
                self.skip(self.take("<Q"))  # which says what is missing
            self.position = end
            yield begin, end


def _take_text(cursor: _Cursor) -> str:
    return cursor.take_bytes().decode("utf-8", errors="replace")


def _take_pair(cursor: _Cursor) -> tuple[str, Any]:
    key = _take_text(cursor)
    return key, _take_value(cursor, cursor.take("<I"))


def _take_value(cursor: _Cursor, kind: int) -> Any:
    if kind == GGUFValueType.STRING:
        return _take_text(cursor)
    if kind == GGUFValueType.ARRAY:
        return _take_array(cursor, cursor.take("<I"), cursor.take("<Q"))
    value = cursor.take(_layout(cursor, kind))
    # The file holds the nearest float32 to a decimal constant: 1e-06 is meant where 9.999999974752427e-07 is stored.
    return float(str(np.float32(value))) if kind == GGUFValueType.FLOAT32 else value


def _take_array(cursor: _Cursor, kind: int, count: int) -> Any:
    if kind == GGUFValueType.STRING:
        begin = cursor.position
        deque(cursor.strings(count), maxlen=0)
        return StringArray(cursor.path, begin, count)
    dtype = np.dtype(_layout(cursor, kind))
    begin = cursor.skip(count * dtype.itemsize)
    return np.frombuffer(cursor.data[begin : cursor.position], dtype)


def _layout(cursor: _Cursor, kind: int) -> str:
    if kind not in _SCALARS:
        raise _corrupt(cursor.path, f"byte {cursor.position} has the unknown value type {kind}")
    return _SCALARS[kind]


def _take_entry(cursor: _Cursor) -> TensorEntry:
    """One tensor entry, its offset still counted from the start of the data."""
    name, rank = _take_text(cursor), cursor.take("<I")
    if rank > MAX_RANK:
        raise _corrupt(cursor.path, f"tensor {name} has {rank} dimensions")
    shape = tuple(reversed([cursor.take("<Q") for _ in range(rank)]))
    kind, offset = cursor.take("<I"), cursor.take("<Q")
    try:
        quantization = GGMLQuantizationType(kind)
    except ValueError as error:
        raise InputError(
            f"{cursor.path}: tensor {name} has the ggml type {kind}, which is not known; quantize it to another type."
        ) from error
    nbytes = _stored_bytes(cursor.path, name, shape, quantization)
    return TensorEntry(cursor.path, name, shape, quantization, offset, nbytes)


def _stored_bytes(path: Path, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    block, block_bytes = GGML_QUANT_SIZES[kind]
    row = shape[-1] if shape else 1
    if row % block:
        raise _corrupt(path, f"rows of tensor {name} have {row} values, not whole {kind.name} blocks of {block}")
    return math.prod(shape) // int(block) * int(block_bytes)


def _place(path: Path, entry: TensorEntry, data_start: int, size: int) -> TensorEntry:
    begin = data_start + entry.offset
    if begin + entry.nbytes > size:
        raise _corrupt(path, f"tensor {entry.name} ends at byte {begin + entry.nbytes}, but the file has {size}")
    return replace(entry, offset=begin)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _corrupt(path: Path, why: str) -> InputError:
    return InputError(f"{path} is not a whole GGUF file: {why}; download it again.")
