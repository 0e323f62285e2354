"""The bytes of the weights, a few at a time: what a rule may look at without loading a model."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import onnx_ir as ir

from truecast.diagnosis.loading import ExternalData
from truecast.diagnosis.sparse import LARGEST_BYTES

SMALLEST_BYTES = 4096
"""Copies and constants below this size are not worth a word."""
SAMPLE_BYTES = 4096
"""Bytes of each sample of a weight: one page, so that a sample is one read."""
SAMPLES = 5
"""Samples spread over a weight; weights that agree in all of them are then compared whole."""
CHUNK_BYTES = 1 << 22
SMALL_ELEMENTS = 1 << 14
"""Constants of up to this many elements are read where a rule needs their values: scalars, shapes, tables of sizes."""


@dataclass(frozen=True)
class Weight:
    """One initializer: its value in the graph, its tensor, and where the bytes are if not in the file itself."""

    value: ir.Value
    tensor: ir.TensorProtocol
    source: ExternalData | None

    @property
    def name(self) -> str:
        """Its name in the graph."""
        return self.value.name or ""

    @property
    def dtype(self) -> ir.DataType:
        """How it is stored."""
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return tuple(int(size) for size in self.tensor.shape.numpy())

    @property
    def elements(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes when stored."""
        return self.tensor.nbytes

    @property
    def place(self) -> Hashable:
        """Where it is stored: weights that share one range of a file have one place."""
        return (self.source.location, self.source.offset) if self.source is not None else self.name

    @property
    def readable(self) -> bool:
        """Whether its bytes may be read: in the file itself, not huge when dense, or in the model's folder."""
        if self.source is None:
            sparse = isinstance(self.tensor, ir.LazyTensor)
            return self.dtype is not ir.DataType.STRING and not (sparse and self.nbytes > LARGEST_BYTES)
        file = self.source.path
        return self.source.inside and file.is_file() and self.source.offset + self.nbytes <= file.stat().st_size

    def read(self, start: int, length: int) -> bytes:
        """Bytes `start` to `start + length`, cut at the end of the weight; it must be `readable`."""
        length = max(min(length, self.nbytes - start), 0)
        if self.source is None:
            return self.tensor.tobytes()[start : start + length]
        with self.source.path.open("rb") as file:
            file.seek(self.source.offset + start)
            return file.read(length)

    def array(self) -> np.ndarray:
        """All of it; for small constants."""
        return np.asarray(self.tensor.numpy())

    def sample(self) -> bytes:
        """A few pages spread over the weight."""
        last = max(self.nbytes - SAMPLE_BYTES, 0)
        return b"".join(self.read(last * i // (SAMPLES - 1), SAMPLE_BYTES) for i in range(SAMPLES))

    def digest(self) -> bytes:
        """A hash of all its bytes, read in chunks."""
        digest = hashlib.sha256()
        for start in range(0, self.nbytes, CHUNK_BYTES):
            digest.update(self.read(start, CHUNK_BYTES))
        return digest.digest()


def weights_of(model: ir.Model, sources: Mapping[str, ExternalData]) -> Iterator[Weight]:
    """Every initializer of the model and its subgraphs that has a value."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None:
                external = isinstance(value.const_value, ir.ExternalTensor)
                yield Weight(value, value.const_value, sources.get(value.name or "") if external else None)


def same_weights(weights: Iterable[Weight]) -> Iterator[tuple[Weight, ...]]:
    """Groups of equal weights: alike in dtype, shape and a few pages first, then compared whole.

    Tensors that already share one range of a file are stored once, and count as one.
    """
    groups: dict[Hashable, list[Weight]] = defaultdict(list)
    for weight in weights:
        if weight.nbytes >= SMALLEST_BYTES and weight.readable:
            groups[weight.dtype, weight.shape].append(weight)
    for alike in groups.values():
        if len(alike) > 1:
            for sampled in _split(alike, Weight.sample):
                yield from (
                    tuple(group)
                    for group in _split(sampled, Weight.digest)
                    if len({weight.place for weight in group}) > 1
                )


def _split(weights: Sequence[Weight], key: object) -> list[list[Weight]]:
    if len(weights) < 2 or not callable(key):
        return []
    groups: dict[Hashable, list[Weight]] = defaultdict(list)
    for weight in weights:
        groups[key(weight)].append(weight)
    return [group for group in groups.values() if len(group) > 1]


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor of its dtype and shape."""
    bits: int = prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth
    return -(-bits // 8)
