"""Values of a graph that depend on initializers alone, computed a run of rows at a time.

Scales that are products of factors, tables in a smaller dtype: the graph computes them when it is loaded, and the proof
computes them once more, from the operators' specification. Every operator met here leaves the first axis, the rows, as
it is; anything else is not a constant that can be read by rows, and raises `NotByRowsError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from truecast.checkpoint.mapping import map_array
from truecast.errors import InputError
from truecast.proof.operators import BYTE_BITS, Array, unpack_codes

RowsOf = Callable[[int, int], Array]
"""Rows [start, stop) of a value."""


class NotByRowsError(Exception):
    """A value is no constant, or its rows depend on each other."""


def base_of(value: ir.Value | None) -> ir.Value | None:
    """The initializer at the root of a constant value: what its first inputs lead to."""
    while value is not None and not value.is_initializer():
        producer = value.producer()
        if producer is None or producer.op_type not in FOLLOWED or not producer.inputs:
            return None
        value = producer.inputs[1 if is_table(producer) else 0]
    return value


def is_table(node: ir.Node) -> bool:
    """Whether a Gather looks numbers up in a constant of the graph."""
    data = None if node.op_type != "Gather" or node.inputs[0] is None else node.inputs[0].producer()
    return data is not None and data.op_type == "Constant"


def untransposed(value: ir.Value | None) -> ir.Value | None:
    """What a matrix was before its axes were swapped, or the matrix itself."""
    node = None if value is None else value.producer()
    swapped = node is not None and node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [1, 0]
    return node.inputs[0] if node is not None and swapped else value


def packed_bytes(tensor: ir.TensorProtocol) -> Array:
    """The bytes of a tensor as they are stored, uint8 and flat; memory-mapped where the tensor is."""
    if not isinstance(tensor, ir.ExternalTensor):
        return np.frombuffer(tensor.tobytes(), np.uint8)
    return _mapped(tensor, np.dtype(np.uint8), (tensor.nbytes,))


def stored_array(tensor: ir.TensorProtocol) -> Array:
    """A tensor's array; memory-mapped where the tensor is."""
    if not isinstance(tensor, ir.ExternalTensor) or int(tensor.dtype.bitwidth) < BYTE_BITS:
        return tensor.numpy()
    return _mapped(tensor, tensor.dtype.numpy(), tuple(tensor.shape.numpy()))


def _mapped(tensor: ir.ExternalTensor, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """External data in the graph's own folder. onnx-ir takes the hard links of --link-weights for an attack."""
    location = Path(tensor.location)
    if location.name != str(location):
        raise InputError(f"{location} lies outside the artifact's folder; export the model again.")
    return map_array(Path(tensor.base_dir) / location, tensor.offset or 0, dtype, shape)


def _stored(tensor: ir.TensorProtocol) -> RowsOf:
    """Rows of an initializer; codes below a byte are unpacked as they are read."""
    bits, shape = int(tensor.dtype.bitwidth), tuple(tensor.shape.numpy())
    if bits >= BYTE_BITS:
        array = stored_array(tensor)
        return lambda start, stop: array[start:stop]
    width, packed, dtype = int(np.prod(shape[1:])), packed_bytes(tensor), tensor.dtype.numpy()
    if width * bits % BYTE_BITS:
        raise NotByRowsError(f"{tensor.name}: rows that share a byte")
    row = width * bits // BYTE_BITS

    def read(start: int, stop: int) -> Array:
        codes = unpack_codes(packed[start * row : stop * row], bits)
        return codes.view(dtype).reshape(stop - start, *shape[1:])

    return read


def rows_of(value: ir.Value, picked: bool = False) -> RowsOf:
    """How to compute rows of a constant value; raises NotByRowsError for what is none.

    With `picked`, a Gather that picks rows stands for all rows: the value is what becomes of each of them.
    """
    if value.is_initializer():
        if value.const_value is None:
            raise NotByRowsError(value.name)
        return _stored(value.const_value)
    node = value.producer()
    if node is None:
        raise NotByRowsError(value.name)
    if node.op_type in COMBINED:
        return _combined(node, picked)
    if node.op_type == "Concat":
        return _side_by_side(node, picked)
    if node.op_type == "Gather":
        return _gathered(node, picked)
    if node.op_type not in BY_ROWS or node.inputs[0] is None:
        raise NotByRowsError(f"{value.name} ({node.op_type})")
    inner, compute = rows_of(node.inputs[0], picked), BY_ROWS[node.op_type]
    return lambda start, stop: compute(node, inner(start, stop))


def _side_by_side(node: ir.Node, picked: bool) -> RowsOf:
    axis = node.attributes["axis"].as_int()
    parts = [rows_of(value, picked) for value in node.inputs if value is not None]
    if axis < 1:
        raise NotByRowsError("Concat of the rows")
    return lambda start, stop: np.concatenate([part(start, stop) for part in parts], axis)


def _gathered(node: ir.Node, picked: bool) -> RowsOf:
    data, numbers = node.inputs
    assert data is not None and numbers is not None
    if is_table(node):
        table, codes = ir.convenience.get_const_tensor(data), rows_of(numbers, picked)
        assert table is not None
        values = table.numpy()
        return lambda start, stop: values[codes(start, stop)]
    if not picked or node.attributes["axis"].as_int() != 0:
        raise NotByRowsError("rows that a Gather picked")
    return rows_of(data)


def _combined(node: ir.Node, picked: bool) -> RowsOf:
    operation = COMBINED[node.op_type]
    parts = [_operand(value, picked) for value in node.inputs]
    shapes = {(part(0, 1).ndim, _rows_in(value)) for part, value in zip(parts, node.inputs, strict=True)} - {(0, None)}
    if len(shapes) > 1:  # broadcast, so that a row of the one is no row of the other
        raise NotByRowsError(f"{node.op_type} of unlike shapes")

    def read(start: int, stop: int) -> Array:
        left, right = (part(start, stop) for part in parts)
        result: Array = operation(left, right)
        return result

    return read


def _operand(value: ir.Value | None, picked: bool) -> RowsOf:
    """An input of Mul or Add: a scalar, or rows."""
    assert value is not None
    number = _scalar(value)
    return rows_of(value, picked) if number is None else lambda start, stop: number


def _scalar(value: ir.Value | None) -> Array | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor.numpy() if tensor is not None and len(tensor.shape) == 0 else None


def _rows_in(value: ir.Value | None) -> int | None:
    """The number of rows of a constant value, None of a scalar."""
    base = base_of(value)
    if _scalar(value) is not None or base is None or base.const_value is None:
        return None
    return base.const_value.shape.numpy()[0]


def _ints(node: ir.Node, index: int) -> list[int]:
    value = node.inputs[index]
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise NotByRowsError(node.op_type)
    return [int(number) for number in tensor.numpy().tolist()]


def _cast(node: ir.Node, rows: Array) -> Array:
    result: Array = rows.astype(ir.DataType(node.attributes["to"].as_int()).numpy())
    return result


def _reshape(node: ir.Node, rows: Array) -> Array:
    shape, literally = _ints(node, 1), node.attributes.get("allowzero")
    if shape[0] != 0 or (literally is not None and literally.as_int()):
        raise NotByRowsError("Reshape of the rows")
    return rows.reshape([rows.shape[index] if size == 0 else size for index, size in enumerate(shape)])


def _unsqueeze(node: ir.Node, rows: Array) -> Array:
    axes = _ints(node, 1)
    if any(axis < 1 for axis in axes):
        raise NotByRowsError("Unsqueeze of the rows")
    return np.expand_dims(rows, tuple(axes))


def _expand(node: ir.Node, rows: Array) -> Array:
    shape = _ints(node, 1)
    if shape[0] != 1 or len(shape) != rows.ndim:
        raise NotByRowsError("Expand of the rows")
    return np.broadcast_to(rows, np.broadcast_shapes(rows.shape, tuple(shape)))


def _slice(node: ir.Node, rows: Array) -> Array:
    if len(node.inputs) != 4:
        raise NotByRowsError("Slice without axes, or with steps")
    starts, ends, axes = (_ints(node, index) for index in (1, 2, 3))
    if any(axis < 1 for axis in axes):
        raise NotByRowsError("Slice of the rows")
    for start, end, axis in zip(starts, ends, axes, strict=True):
        rows = np.take(rows, range(*slice(start, end).indices(rows.shape[axis])), axis)
    return rows


def _bits(node: ir.Node, rows: Array) -> Array:
    """BitShift to the right, or BitwiseAnd, with a constant."""
    value = node.inputs[1]
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size != 1:
        raise NotByRowsError(node.op_type)
    if node.op_type == "BitwiseAnd":
        result: Array = rows & tensor.numpy()
        return result
    if node.attributes["direction"].as_string() != "RIGHT":
        raise NotByRowsError("BitShift to the left")
    shifted: Array = rows >> tensor.numpy()
    return shifted


BY_ROWS: Mapping[str, Callable[[ir.Node, Array], Array]] = {
    "Cast": _cast,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Slice": _slice,
    "BitShift": _bits,
    "BitwiseAnd": _bits,
}
"""Operators of one input that leave the rows as they are."""
COMBINED: Mapping[str, np.ufunc] = {"Mul": np.multiply, "Add": np.add, "Sub": np.subtract}
"""Operators of two inputs, of the same rows or one of them a scalar."""
FOLLOWED = frozenset({*BY_ROWS, *COMBINED, "Concat", "Gather"})
"""Operators whose first inputs lead to the initializer that a value is made of."""
