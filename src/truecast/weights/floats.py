"""Float weights, as they are or with their two axes swapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from truecast.checkpoint.model import Array, StoredTensor
from truecast.errors import InputError
from truecast.weights.binding import Binding, Operand
from truecast.weights.sources import stored_rows


def dense_binding(name: str, tensor: StoredTensor, dtype: ir.DataType, transpose: bool = False) -> Binding:
    """A float tensor as it is, or with its two axes swapped."""
    target = dtype.numpy()
    if transpose:
        columns, width = tensor.shape

        def produce(start: int, stop: int) -> Sequence[Array]:
            strip = np.empty((stop - start, columns), target)
            step = max(1, ROWS_AT_ONCE // width)
            for row in range(0, columns, step):
                end = min(row + step, columns)
                strip[:, row:end] = cast(stored_rows(tensor, row, end)[:, start:stop].T, target, name)
            return [strip]

        operand = Operand(f"{name}.transposed", dtype, (width, columns))
        return Binding((operand,), (tensor.name,), f"dense {word(dtype)}, transposed", width, columns, produce)

    def produce_rows(start: int, stop: int) -> Sequence[Array]:
        return [cast(stored_rows(tensor, start, stop), target, name)]

    rows = tensor.shape[0] if tensor.shape else 1
    operand = Operand(name, dtype, tensor.shape)
    same = tensor if tensor.verbatim and tensor.dtype == target else None
    packing, cost = f"dense {word(dtype)}", tensor.size // max(rows, 1)
    return Binding((operand,), (tensor.name,), packing, rows, cost, produce_rows, same)


ROWS_AT_ONCE = 1 << 24
"""Weights read at once while transposing (64 MiB of float32)."""


LARGEST: Mapping[str, str] = {"float16": "65504", "bfloat16": "3.39e38"}
"""What floats of 16 bits end at."""


def cast(values: Array, target: np.dtype[Any], name: str) -> Array:
    """Values as `target`; raises InputError when it cannot hold them."""
    if values.dtype == target:
        return values
    with np.errstate(over="ignore"):
        result: Array = values.astype(target)
    if target.name in LARGEST and not np.isfinite(result).all():
        raise InputError(
            f"{name!r} holds values beyond {target}'s range ({LARGEST[target.name]}); choose --precision fp32 or int4."
        )
    return result


def word(dtype: ir.DataType) -> str:
    """NumPy's name of a dtype."""
    return {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16"}.get(dtype, dtype.name.lower())
