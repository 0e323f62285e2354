"""The nouns of reading: a checkpoint, its tensors, and how one weight is encoded.

Data flow: path → format reader (safetensors, gguf) → `Checkpoint` (config, side files, `StoredTensor` by name) →
`StoredTensor.rows()` gives any run of rows as a NumPy array, straight from the memory-mapped file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from truecast.checkpoint.adapters import Adapter
    from truecast.checkpoint.encoding import Encoding

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

    `encoding` says how a quantized matrix is stored, None for floats. `parts` are the tensors of the file that make up
    this one, where a library stores codes, scales and zero points apart; `location` is then that of the codes.

    `matrices` is there for the experts of a layer, [experts, …, …], where the file has their matrices [out, in]: all of
    them one below the other, [experts · out, in], in the order of the file, encoded as the file has them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stored_as: str
    location: FileRange
    reader: Reader = field(repr=False, compare=False)
    verbatim: bool = False
    encoding: Encoding | None = field(default=None, repr=False, compare=False)
    parts: tuple[StoredTensor, ...] = field(default=(), repr=False)
    matrices: StoredTensor | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_quantized(self) -> bool:
        """Whether it is stored as codes: by its encoding, or by its parts, of which those of a stack may be floats."""
        coded = (part.is_quantized or part.dtype.kind in "iub" or part.dtype.itemsize < 2 for part in self.parts)
        return self.encoding is not None or any(coded)

    @property
    def nbytes(self) -> int:
        """Bytes on disk, all parts together."""
        return sum(part.nbytes for part in self.parts) or self.location.length

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
    that returns its bytes, so nothing is made before it is asked for. `quantization` names the library that quantized
    the weights, None for floats. `ignored` maps tensors of the files that no weight needs to the reason, and `notices`
    are sentences that the user should read. `cache_scales` are those of the ignored tensors that scale a quantized
    key/value cache, by their names. `adapter` is what is still to be added to the tensors.
    """

    path: Path
    format: str
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    side_files: Mapping[str, Callable[[], bytes]] = field(default_factory=dict, repr=False)
    quantization: str | None = None
    ignored: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    cache_scales: Mapping[str, StoredTensor] = field(default_factory=dict, repr=False)
    adapter: Adapter | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors, and those of the adapter, sorted; none for a module in memory."""
        if self.format == "module":
            return ()
        stored = [part for tensor in self.tensors.values() for part in (tensor.parts or (tensor,))]
        adapter = () if self.adapter is None else self.adapter.files
        return tuple(sorted({*adapter, *(part.location.path for part in stored)}))

    @property
    def file_names(self) -> dict[str, Path]:
        """Those files by their names within the checkpoint's folder; `adapter: NAME` for an adapter from elsewhere."""
        folder = self.path if self.path.is_dir() else self.path.parent
        foreign = self.adapter.files if self.adapter is not None and self.adapter.path != self.path else ()
        return {
            f"adapter: {path.name}" if path in foreign else path.relative_to(folder).as_posix(): path
            for path in self.files
        }
