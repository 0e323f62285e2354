"""The weights an artifact holds, read back from its own files: what the graph will really multiply with.

Data flow: the manifest says which checkpoint tensors an initializer holds → the nodes that read it say what it means
(`reading`) → a `HeldWeight` per parameter, whose rows come from the memory-mapped data file. Nothing here knows how the
weights were packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from truecast.artifact import WeightInfo
from truecast.errors import InputError
from truecast.proof.constants import RowsOf, packed_bytes, stored_array
from truecast.proof.operators import Array
from truecast.proof.reading import read_tables
from truecast.proof.table import Quantization, Stack, Table, plain_table
from truecast.weights.cache import CACHE_SCALES
from truecast.weights.sources import Sources

TRANSPOSED = ".transposed"
"""Ending of a dense initializer that holds the parameter with its two axes swapped."""
CHUNK_WEIGHTS = 1 << 22
"""Weights decoded at once: 16 MiB of float32."""


@dataclass(frozen=True)
class HeldWeight:
    """One parameter as the artifact holds it.

    `shape` is (rows, width) as the graph reads it: [out, in] for a quantized product, [in, out] for a dense transposed
    one. `initializers` are the names in the graph. `read` gives rows: dense ones in their own dtype, quantized ones
    decoded to float32. `quantization` is None for dense weights. `own` says that the checkpoint's own codes are held,
    so that the values must be the same. `dtype` is that of the dense values or of the scales. `stack` is there for the
    experts of a layer, whose rows are experts.
    """

    parameter: str
    initializers: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool
    quantization: Quantization | None
    read: RowsOf
    dtype: np.dtype[np.generic]
    own: bool = False
    stack: Stack | None = None

    def rows(self, start: int, stop: int) -> Array:
        """Rows [start, stop)."""
        return self.read(start, stop)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Runs of rows [start, stop) that are decoded at once."""
        yield from row_chunks(self.shape)


def row_chunks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Runs of rows [start, stop) of a tensor, about `CHUNK_WEIGHTS` values each."""
    rows = shape[0] if shape else 1
    width = int(np.prod(shape[1:], dtype=np.int64)) if len(shape) > 1 else 1
    step = max(1, CHUNK_WEIGHTS // max(1, width))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def load_graph(folder: Path, file: str) -> ir.Model:
    """The graph of an artifact, its weights memory-mapped; raises InputError when it is missing or unreadable."""
    path = folder / file
    if not path.is_file():
        raise InputError(f"{path} is missing; export the model again.")
    try:
        return ir.load(path)
    except Exception as error:  # protobuf and onnx-ir raise many kinds
        raise InputError(f"{path} cannot be read ({str(error).splitlines()[0]}); export the model again.") from error


def held_weights(
    model: ir.Model, weights: Sequence[WeightInfo], sources: Sources, islands: bool = False
) -> dict[str, HeldWeight]:
    """Every parameter that the manifest's weights hold, by its name; several may lie one below the other.

    A parameter that is held or read in several ways is there once for each: one under its name, the others under names
    of their own. Initializers that the manifest lists and the graph lacks, and arrays computed from no tensor, are left
    out. `islands`: see `read_tables`.
    """
    tables = _tables(model, weights, islands)
    held: dict[str, HeldWeight] = {}
    for info in weights:
        absent = any(name not in model.graph.initializers for name in info.initializers)
        if not info.sources or info.packing == CACHE_SCALES or absent:
            continue
        name = info.initializers[0]
        for table in tables.get(name) or [plain_table(array_of(model, name))]:
            for weight in _held(info, table, sources):
                if weight.parameter in held:
                    held[f"{weight.parameter}, reading {len(held)}"] = held[weight.parameter]
                held[weight.parameter] = weight
    return held


def _tables(model: ir.Model, weights: Sequence[WeightInfo], islands: bool) -> dict[str, list[Table]]:
    """What nodes read, under the names that the manifest lists."""
    listed = aliases(model, {name for info in weights for name in info.initializers})
    tables: dict[str, list[Table]] = {}
    for name, found in read_tables(model, islands).items():
        tables.setdefault(listed.get(name, name), []).extend(found)
    return tables


def _held(info: WeightInfo, table: Table, sources: Sources) -> Iterator[HeldWeight]:
    """The parameters of one weight of the manifest, as nodes read them."""
    parameters = list(dict.fromkeys(sources.rename(source) for source in info.sources))
    for parameter, (start, stop) in zip(parameters, _shares(parameters, sources, table.shape), strict=True):
        yield HeldWeight(
            parameter=parameter,
            initializers=tuple(info.initializers),
            shape=(stop - start, *table.shape[1:]) if table.shape else (),
            transposed=info.initializers[0].endswith(TRANSPOSED),
            quantization=_part(table.quantization, start),
            read=_from(table.read, start),
            dtype=table.dtype,
            own=info.own,
            stack=table.stack,
        )


def _part(quantization: Quantization | None, first: int) -> Quantization | None:
    """The same for the weight whose rows begin at `first`."""
    if quantization is None or quantization.ends is None:
        return quantization
    low, high = quantization.ends
    return replace(quantization, ends=(_from(low, first), _from(high, first)))


def _from(read: RowsOf, first: int) -> RowsOf:
    return lambda start, stop: read(first + start, first + stop)


def _shares(parameters: Sequence[str], sources: Sources, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """The rows [start, stop) of each parameter in an array that holds them one below the other."""
    if len(parameters) == 1:
        return [(0, shape[0] if shape else 1)]
    ends = np.cumsum([sources.parameters[name][0] if name in sources.parameters else 0 for name in parameters]).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def is_external(value: ir.Value) -> bool:
    """Whether an initializer's data lies outside the graph file."""
    return isinstance(value.const_value, ir.ExternalTensor)


def bytes_of(model: ir.Model, name: str) -> Array:
    """An initializer's bytes as they are stored, uint8 and flat, memory-mapped where it is external."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return packed_bytes(tensor)


def array_of(model: ir.Model, name: str) -> Array:
    """An initializer's array, memory-mapped where it is external."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return stored_array(tensor)


def aliases(model: ir.Model, listed: set[str]) -> dict[str, str]:
    """Initializers over the very bytes of a listed one: name → listed name."""
    places = {_place(model.graph.initializers[name]): name for name in listed if name in model.graph.initializers}
    others = [value for name, value in model.graph.initializers.items() if is_external(value) and name not in listed]
    return {value.name or "": places[_place(value)] for value in others if _place(value) in places}


def _place(value: ir.Value) -> tuple[str, int | None, int | None] | None:
    tensor = value.const_value
    if not isinstance(tensor, ir.ExternalTensor):
        return None
    return str(tensor.location), tensor.offset, tensor.length
