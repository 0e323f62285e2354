"""The weights an artifact holds, read back from its own files: what the graph will really multiply with.

Data flow: model.onnx → nodes that consume quantized initializers say how to decode them → a `HeldWeight` per parameter,
whose rows come from the memory-mapped data file. Nothing here knows how the weights were packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from truecast.errors import InputError
from truecast.proof.operators import Array, dequantize

TRANSPOSED = ".transposed"
"""Ending of a dense initializer that holds the parameter with its two axes swapped."""
CODES, SCALES = ".codes", ".scales"
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
    `initializers` are the names in the graph; `quantization` is None for dense weights.
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


def held_weights(model: ir.Model) -> dict[str, HeldWeight]:
    """Every weight of the graph by the name of its parameter; initializers kept in the graph itself are left out."""
    forms = _quantizations(model)
    auxiliary = {name for form in forms.values() for name in (form.scales, form.zeros)}
    weights = {}
    for name, value in model.graph.initializers.items():
        if name in auxiliary or not is_external(value):
            continue
        weight = _quantized(model, name, forms[name]) if name in forms else _dense(model, name)
        weights[weight.parameter] = weight
    return weights


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


def _quantized(model: ir.Model, name: str, form: Quantization) -> HeldWeight:
    codes, scales = array_of(model, name), array_of(model, form.scales)
    scales = scales.reshape(codes.shape[0], -1)
    arrays: tuple[Array, ...] = (codes, scales)
    if form.zeros is not None:
        arrays += (array_of(model, form.zeros).reshape(codes.shape[0], -1),)
    names = tuple(n for n in (name, form.scales, form.zeros) if n is not None)
    width = _width(model, name) or scales.shape[1] * form.block
    return HeldWeight(name.removesuffix(CODES), names, (codes.shape[0], width), False, form, arrays)


def _width(model: ir.Model, codes: str) -> int | None:
    """K of the products that read these codes: the width of a row without the padding of its last block."""
    uses = model.graph.initializers[codes].uses()
    return next((u.node.attributes["K"].as_int() for u in uses if u.node.op_type == "MatMulNBits"), None)


def _dense(model: ir.Model, name: str) -> HeldWeight:
    array = array_of(model, name)
    parameter = name.removesuffix(TRANSPOSED)
    return HeldWeight(parameter, (name,), array.shape, name.endswith(TRANSPOSED), None, (array,))


def by_initializer(weights: Mapping[str, HeldWeight]) -> dict[str, HeldWeight]:
    """The same weights by each initializer's name."""
    return {name: weight for weight in weights.values() for name in weight.initializers}
