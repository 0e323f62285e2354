"""Stored tensors over arrays in memory, and graphs of abstract weight operators: what binding starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

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


def sources(arrays: Mapping[str, np.ndarray], tied: Mapping[str, str] | None = None) -> Sources:
    """Sources whose parameters are exactly the tensors of a checkpoint, and tied ones."""
    tensors = {name: stored(name, array) for name, array in arrays.items()}
    parameters = {name: array.shape for name, array in arrays.items()}
    parameters |= {name: parameters[target] for name, target in (tied or {}).items()}
    return Sources(Checkpoint(Path("folder"), "safetensors", {}, tensors), parameters, tied or {}, lambda name: name)


def whole(binding: Binding) -> list[np.ndarray]:
    """All rows of every operand."""
    return [
        np.asarray(rows).reshape(operand.shape)
        for rows, operand in zip(binding.produce(0, binding.rows), binding.operands, strict=True)
    ]


def run_packed(packer: Packer, folder: Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Writes the packed weights and runs the graph in ONNX Runtime."""
    write_weights(folder / "model.onnx.data", packer.bindings)
    attach(packer.model, packer.bindings, packer.aliases, "model.onnx.data", folder)
    ir.save(packer.model, folder / "model.onnx")
    session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    results: list[np.ndarray] = session.run(None, dict(feeds))
    return results
