"""Arrays over bytes of a file, mapped only while they are alive.

Each call maps just the bytes it needs, and the mapping goes when the array goes: a reader that walks through a
checkpoint of any size keeps only the rows in its hands resident.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from truecast.checkpoint.model import Array
from truecast.errors import InputError


def map_array(path: Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """A read-only array of `shape` and `dtype` over the bytes of `path` from byte `offset` on; nothing is copied.

    Raises:
        InputError: the file is gone or shorter than it was when the checkpoint was opened.
    """
    if 0 in shape:
        return np.empty(shape, dtype)
    try:
        mapped = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} changed while it was being read ({error}); restore it and start again.") from error
    return mapped.view(np.ndarray)
