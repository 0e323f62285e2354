"""The weights an artifact holds, read back from its own files: what the graph will really multiply with.

Data flow: the manifest says which checkpoint tensors an initializer holds → nodes that consume quantized initializers
say how to decode them → a `HeldWeight` per parameter, whose rows come from the memory-mapped data file. Nothing here
knows how the weights were packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from truecast.artifact import WeightInfo
from truecast.errors import InputError
from truecast.proof.operators import Array, dequantize
from truecast.weights.sources import Sources

TRANSPOSED = ".transposed"
"""Ending of a dense initializer that holds the parameter with its two axes swapped."""
CHUNK_WEIGHTS = 1 << 22
"""Weights decoded at once: 16 MiB of float32."""


@dataclass(frozen=True)
class Quantization:
    """How the consumers of a quantized initializer read it: `bits` per code, `block` codes per scale."""

    bits: int
    block: int
    scales: str
    zeros: str | None = None


@dataclass(frozen=True)
class HeldWeight:
    """One parameter as the artifact holds it.

    `shape` is (rows, width) as stored: [out, in] for a quantized product, [in, out] for a dense transposed one.
    `initializers` are the names in the graph; `arrays` are the parameter's rows of each, memory-mapped. `quantization`
    is None for dense weights.
    """

    parameter: str
    initializers: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool
    quantization: Quantization | None
    arrays: tuple[Array, ...]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of the dense values or of the scales."""
        return self.arrays[-1].dtype if self.quantization is None else self.arrays[1].dtype

    def rows(self, start: int, stop: int) -> Array:
        """Rows [start, stop): dense ones in their own dtype, quantized ones decoded to float32."""
        if self.quantization is None:
            return self.arrays[0][start:stop] if self.shape else self.arrays[0].reshape(1)
        codes, scales, *zeros = (array[start:stop] for array in self.arrays)
        form = self.quantization
        return dequantize(codes, scales, form.bits, form.block, self.shape[1], zeros[0] if zeros else None)

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


def held_weights(model: ir.Model, weights: Sequence[WeightInfo], sources: Sources) -> dict[str, HeldWeight]:
    """Every parameter that the manifest's weights hold, by its name; several may lie one below the other.

    Initializers that the manifest lists and the graph lacks, and arrays computed from no tensor, are left out.
    """
    forms = _quantizations(model)
    held = {}
    for info in weights:
        if not info.sources or any(name not in model.graph.initializers for name in info.initializers):
            continue
        arrays = [array_of(model, name) for name in info.initializers]
        parameters = [sources.rename(name) for name in info.sources]
        for parameter, (start, stop) in zip(parameters, _shares(parameters, sources, arrays[0]), strict=True):
            parts = [array[start:stop] if len(parameters) > 1 else array for array in arrays]
            held[parameter] = _held(model, parameter, info, parts, forms.get(info.initializers[0]))
    return held


def _shares(parameters: Sequence[str], sources: Sources, array: Array) -> list[tuple[int, int]]:
    """The rows [start, stop) of each parameter in an array that holds them one below the other."""
    if len(parameters) == 1:
        return [(0, len(array) if array.ndim else 1)]
    ends = np.cumsum([sources.parameters[name][0] if name in sources.parameters else 0 for name in parameters]).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _held(
    model: ir.Model, parameter: str, info: WeightInfo, arrays: Sequence[Array], form: Quantization | None
) -> HeldWeight:
    names = tuple(info.initializers)
    if form is None:
        turned = names[0].endswith(TRANSPOSED)
        return HeldWeight(parameter, names, arrays[0].shape, turned, None, tuple(arrays))
    codes = arrays[0]
    rest = [array.reshape(len(codes), -1) for array in arrays[1:]]
    width = _width(model, names[0]) or rest[0].shape[1] * form.block
    return HeldWeight(parameter, names, (len(codes), width), False, form, (codes, *rest))


def is_external(value: ir.Value) -> bool:
    """Whether an initializer's data lies outside the graph file."""
    return isinstance(value.const_value, ir.ExternalTensor)


def array_of(model: ir.Model, name: str) -> Array:
    """An initializer's array, memory-mapped where it is external."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def _quantizations(model: ir.Model) -> dict[str, Quantization]:
    forms: dict[str, Quantization] = {}
    for node in model.graph:
        if node.op_type not in ("MatMulNBits", "GatherBlockQuantized"):
            continue
        codes = _origin(node.inputs[1 if node.op_type == "MatMulNBits" else 0])
        scales, zeros = _origin(node.inputs[2]), _origin(node.inputs[3] if len(node.inputs) > 3 else None)
        if codes is None or scales is None:
            continue
        bits, block = (node.attributes[name].as_int() for name in ("bits", "block_size"))
        forms[codes] = Quantization(bits, block, scales, zeros)
    return forms


def _origin(value: ir.Value | None) -> str | None:
    """The initializer a value is, or is a reshaped view of."""
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type != "Reshape":
            return None
        value = producer.inputs[0]
    return value.name if value is not None and value.is_initializer() else None


def _width(model: ir.Model, codes: str) -> int | None:
    """K of the products that read these codes: the width of a row without the padding of its last block."""
    uses = model.graph.initializers[codes].uses()
    return next((u.node.attributes["K"].as_int() for u in uses if u.node.op_type == "MatMulNBits"), None)


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
