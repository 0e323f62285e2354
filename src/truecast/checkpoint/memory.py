"""Arrays in memory as a checkpoint, so that a module that came from no file is bound and accounted for like others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from truecast.checkpoint.model import Array, Checkpoint, FileRange, StoredTensor

MEMORY = Path("memory")
"""Where tensors lie that lie in no file."""
STATE = "state of the module"
"""What the hash of all arrays is called in a manifest."""


def memory_checkpoint(
    path: Path,
    arrays: Mapping[str, Array],
    config: Mapping[str, Any],
    side_files: Mapping[str, Callable[[], bytes]],
) -> Checkpoint:
    """The arrays as tensors of a checkpoint; `path` names their origin in messages."""
    tensors = {name: _stored(name, array) for name, array in arrays.items()}
    return Checkpoint(path, "module", config, tensors, side_files)


def _stored(name: str, array: Array) -> StoredTensor:
    def rows(start: int, stop: int) -> Array:
        return array.reshape(array.shape or (1,))[start:stop]

    kind = str(array.dtype)
    return StoredTensor(name, array.shape, array.dtype, kind, FileRange(MEMORY, 0, array.nbytes), rows)


def state_digest(checkpoint: Checkpoint) -> str:
    """The hexadecimal SHA-256 over names, dtypes, shapes and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
