"""A checkpoint as the folder of floats that quantization libraries read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from truecast.checkpoint.divisions import activation_scales
from truecast.checkpoint.model import Checkpoint, StoredTensor
from truecast.checkpoint.schemes import CONFIG_KEYS
from truecast.errors import InputError
from truecast.weights.sources import finite_rows

STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""safetensors' names of the dtypes that are written as they are; everything else becomes float32."""
CHUNK_WEIGHTS = 1 << 22
"""Weights decoded at once: 16 MiB of float32."""


def float_folder(checkpoint: Checkpoint, folder: Path) -> Path:
    """The checkpoint's own folder where it holds floats in safetensors; else `folder`, filled with decoded weights.

    Raises InputError where the checkpoint divides activations: the libraries would leave the divisions out.
    """
    if scales := sorted(activation_scales(checkpoint)):
        raise InputError(
            f"{scales[0]} in {checkpoint.path} divides an activation, which libraries that calibrate do not know of; "
            "choose --precision as-is, or a --method that needs no library."
        )
    if checkpoint.quantization is None and checkpoint.path.is_dir():
        return checkpoint.path
    folder.mkdir(parents=True)
    for name, content in checkpoint.side_files.items():
        (folder / name).write_bytes(content())
    config = {key: value for key, value in checkpoint.config.items() if key not in CONFIG_KEYS}
    (folder / "config.json").write_text(json.dumps(config))
    _write_tensors(folder / "model.safetensors", list(checkpoint.tensors.values()))
    return folder


def _write_tensors(path: Path, tensors: list[StoredTensor]) -> None:
    """One safetensors file, a run of rows at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.size * _dtype(tensor).itemsize
        header[tensor.name] = {
            "dtype": STORED[_dtype(tensor).name],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for tensor in tensors:
            rows = tensor.shape[0] if tensor.shape else 1
            step = max(1, CHUNK_WEIGHTS * rows // max(1, tensor.size))
            for start in range(0, rows, step):
                values = finite_rows(tensor, start, min(start + step, rows)).astype(_dtype(tensor))
                file.write(np.ascontiguousarray(values).tobytes())


def _dtype(tensor: StoredTensor) -> np.dtype[Any]:
    return tensor.dtype if tensor.dtype.name in STORED else np.dtype(np.float32)
