"""The nouns of reading: a checkpoint, its tensors, and how one weight is encoded.

Data flow: path → format reader (safetensors, gguf) → `Checkpoint` (config, side files, `StoredTensor` by name) →
`StoredTensor.rows()` gives any run of rows as a NumPy array, straight from the memory-mapped file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Reader(Protocol):
    """Decodes rows [start, stop) of one stored tensor into an array of shape [stop - start, *shape[1:]]."""

    def __call__(self, start: int, stop: int) -> Array:
        """Rows [start, stop), where 0 <= start <= stop <= number of rows."""
        ...


@dataclass(frozen=True)
class FileRange:
    """Where the raw bytes of a tensor lie: `offset` and `length` in bytes within `path`."""

    path: Path
    offset: int
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, unread.

    `shape` and `dtype` are those of the *decoded* tensor, as `rows` returns it; `dtype` is a NumPy dtype (bfloat16 and
    the float8 types come from `ml_dtypes`). `stored_as` names the storage in the format's own words: `F32`, `BF16`,
    `Q4_K`, … A scalar has the shape () and one row. `verbatim` says that the bytes at `location` are the decoded values
    as they are, so that another file may refer to them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stored_as: str
    location: FileRange
    reader: Reader = field(repr=False, compare=False)
    verbatim: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.location.length

    def rows(self, start: int = 0, stop: int | None = None) -> Array:
        """Rows [start, stop) along the first dimension, clipped as a slice is; a view of the file where possible."""
        length = self.shape[0] if self.shape else 1
        begin, end, _ = slice(start, stop).indices(length)
        return self.reader(begin, max(begin, end))

    def read(self) -> Array:
        """The whole tensor."""
        return self.rows().reshape(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """What the user has: configuration, tensors by their Hugging Face names, and the files that go along.

    `config` is the content of config.json (for GGUF: derived from the metadata). `tensors` use the parameter names of
    the transformers model. `side_files` maps a file name (tokenizer.json, generation_config.json, …) to a function
    that returns its bytes, so nothing is made before it is asked for.
    """

    path: Path
    format: str
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    side_files: Mapping[str, Callable[[], bytes]] = field(default_factory=dict, repr=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors, sorted."""
        return tuple(sorted({tensor.location.path for tensor in self.tensors.values()}))
