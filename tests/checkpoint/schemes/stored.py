"""True checkpoints and hand-written ones as schemes read them, and what the library decoded the true ones to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from truecast.checkpoint.encoding import decode
from truecast.checkpoint.model import StoredTensor
from truecast.checkpoint.safetensors_format import SINGLE_NAME, read_folder_tensors, read_metadata
from truecast.checkpoint.schemes import Resolved, resolve
from truecast.checkpoint.schemes.model import Scheme
from truecast.errors import InputError

DATA = Path(__file__).parents[2] / "data"
MODULE = "model.layers.0.mlp.up_proj"
FLOAT4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What the 16 codes of a 4-bit float stand for, written out."""

Array = NDArray[Any]
Parts = Mapping[str, Array]
Quantization = Mapping[str, Any] | None


def opened(folder: Path, scheme: Scheme) -> Resolved:
    """The tensors of a folder as `scheme` alone reads them."""
    tensors = read_folder_tensors(folder)
    assert tensors is not None
    config = json.loads((folder / "config.json").read_text())
    return resolve(folder, config, tensors, read_metadata(folder), (scheme,))


# True checkpoints -----------------------------------------------------------------------------------------------------


def oracle(name: str) -> Mapping[str, str]:
    """What the library decoded a true checkpoint's weights to: SHA-256 of the float32 bytes by tensor name."""
    hashes: Mapping[str, str] = json.loads((DATA / name / "oracle.json").read_text())["weights"]
    return hashes


def digest(values: Array) -> str:
    assert values.dtype == np.float32
    return hashlib.sha256(np.ascontiguousarray(values).astype("<f4").tobytes()).hexdigest()


def from_encoding(tensor: StoredTensor) -> Array:
    """The whole weight through its encoding, as packings see it, whatever the tensor's own reader does."""
    assert tensor.encoding is not None
    return decode(tensor.encoding, tensor.shape[1], 0, tensor.shape[0])


def assert_rows_agree(tensor: StoredTensor) -> None:
    """Any run of rows is that run of the whole, read through the reader and through the encoding."""
    rows, width = tensor.shape
    runs = [(0, 0), (0, 1), (1, 2), (rows // 3, rows // 2 + 1), (rows - 1, rows), (rows, rows)]
    for start, stop in runs:
        np.testing.assert_array_equal(tensor.rows(start, stop), tensor.read()[start:stop])
        if tensor.encoding is not None:
            part = decode(tensor.encoding, width, start, stop)
            np.testing.assert_array_equal(part, from_encoding(tensor)[start:stop])


# Hand-written checkpoints ---------------------------------------------------------------------------------------------


def save(
    folder: Path,
    tensors: Mapping[str, Array | None],
    quantization: Quantization,
    metadata: Mapping[str, str] | None = None,
    model: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a checkpoint of these tensors, those that are None left out; `model` adds to its config.json."""
    config = {"model_type": "llama"} | ({} if quantization is None else {"quantization_config": quantization})
    (folder / "config.json").write_text(json.dumps({**config, **(model or {})}))
    # A scalar keeps its shape through `copy`, not through `ascontiguousarray`.
    stored = {name: values.copy("C") for name, values in tensors.items() if values is not None}
    save_file(stored, folder / SINGLE_NAME, metadata)
    return folder


def written(folder: Path, scheme: Scheme, tensors: Parts, metadata: Mapping[str, str] | None = None) -> Any:
    """A checkpoint that states only its method, as `scheme` reads it: tensors by name."""
    return opened(save(folder, tensors, {"quant_method": min(scheme.methods)}, metadata), scheme).tensors


def resolved(folder: Path, scheme: Scheme, parts: Parts, quantization: Quantization, module: str = MODULE) -> Resolved:
    """What `scheme` makes of a checkpoint that holds the parts of one module."""
    return opened(save(folder, {f"{module}.{part}": values for part, values in parts.items()}, quantization), scheme)


def weight(folder: Path, scheme: Scheme, parts: Parts, quantization: Quantization) -> StoredTensor:
    """The module's one weight."""
    return resolved(folder, scheme, parts, quantization).tensors[f"{MODULE}.weight"]


def refused(folder: Path, scheme: Scheme, parts: Parts, quantization: Quantization, why: str) -> None:
    """Asserts that the checkpoint is refused in a sentence that says where it is, and why."""
    with pytest.raises(InputError, match=re.escape(why)) as caught:
        resolved(folder, scheme, parts, quantization)
    assert str(folder) in str(caught.value)


def float8(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random float8 E4M3 numbers, all finite."""
    codes = generator.integers(0, 256, shape, np.uint8)
    codes[codes & 0x7F == 0x7F] = 0
    return codes.view(ml_dtypes.float8_e4m3fn)


def float4(packed: Array) -> Array:
    """float32 [rows, 2 · bytes] for bytes whose low half is the even column."""
    codes = np.stack([packed & 15, packed >> 4], axis=-1)
    return FLOAT4[codes].reshape(*packed.shape[:-1], -1)
