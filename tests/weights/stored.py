"""Stored tensors over arrays in memory, and graphs of abstract weight operators: what binding starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from truecast.checkpoint.encoding import Encoding, decode
from truecast.checkpoint.model import Checkpoint, FileRange, StoredTensor
from truecast.weights.binding import Binding
from truecast.weights.packing import Packer
from truecast.weights.sources import Sources
from truecast.weights.writer import attach, write_weights

FILE = Path("folder/model.safetensors")


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def stored(name: str, array: np.ndarray, location: FileRange | None = None) -> StoredTensor:
    """A tensor whose reader gives rows of `array`; verbatim when it lies at `location`."""
    rows = array if array.shape else array.reshape(1)
    return StoredTensor(
        name=name,
        shape=array.shape,
        dtype=array.dtype,
        stored_as=str(array.dtype),
        location=location or FileRange(FILE, 0, array.nbytes),
        reader=lambda start, stop: rows[start:stop],
        verbatim=location is not None,
    )


def encoded(name: str, encoding: Encoding, shape: tuple[int, int]) -> StoredTensor:
    """A quantized tensor, read by decoding it."""
    return StoredTensor(
        name=name,
        shape=shape,
        dtype=np.dtype(np.float32),
        stored_as="test",
        location=FileRange(FILE, 0, 1),
        reader=lambda start, stop: decode(encoding, shape[1], start, stop),
        encoding=encoding,
    )


def sources(arrays: Mapping[str, np.ndarray | StoredTensor], tied: Mapping[str, str] | None = None) -> Sources:
    """Sources whose parameters are exactly the tensors of a checkpoint, and tied ones."""
    tensors = {name: a if isinstance(a, StoredTensor) else stored(name, a) for name, a in arrays.items()}
    parameters = {name: tensor.shape for name, tensor in tensors.items()}
    parameters |= {name: parameters[target] for name, target in (tied or {}).items()}
    return Sources(Checkpoint(Path("folder"), "safetensors", {}, tensors), parameters, tied or {}, lambda name: name)


def whole(binding: Binding) -> list[np.ndarray]:
    """All rows of every operand."""
    return [
        np.asarray(rows).reshape(operand.shape)
        for rows, operand in zip(binding.produce(0, binding.rows), binding.operands, strict=True)
    ]


def run_packed(
    packer: Packer, folder: Path, feeds: Mapping[str, np.ndarray], optimized: bool = True
) -> list[np.ndarray]:
    """Writes the packed weights and runs the graph in ONNX Runtime."""
    write_weights(folder / "model.onnx.data", packer.bindings)
    attach(packer.model, packer.bindings, packer.aliases, "model.onnx.data", folder)
    ir.save(packer.model, folder / "model.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    results: list[np.ndarray] = session.run(None, dict(feeds))
    return results
