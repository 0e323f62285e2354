"""Tensors whose declaration contradicts what the file holds: the file is damaged, and nothing said of it would be true.

Only the message itself is looked at; whether external data is there and long enough is a rule's to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import onnx
import onnx_ir as ir

from truecast.diagnosis.inference import TYPE_ATTRIBUTES
from truecast.diagnosis.schemas import find_schema, standard
from truecast.diagnosis.sparse import graphs_in, sparse_damage, sparse_value

BYTE_BITS = 8
TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
"""Fields of a tensor whose elements are numbers or strings rather than bytes."""
NUMBERS = ("offset", "length")
"""Entries of external data that are counts of bytes."""


def damages(graph: onnx.GraphProto) -> Iterator[str]:
    """A phrase for each tensor of the graph and its subgraphs that cannot be what it declares."""
    for holder in graphs_in(graph):
        for tensor in _tensors(holder):
            if reason := _damage(tensor):
                yield f"{tensor.name or 'a constant'} {reason}"
        for name, sparse in _sparse_tensors(holder):
            if reason := _damage(sparse.values) or _damage(sparse.indices) or sparse_damage(sparse):
                yield f"{name or 'a constant'} {reason}"


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The dense tensors that a graph itself holds."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.type == onnx.AttributeProto.TENSOR:
            yield attribute.t


def _sparse_tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.SparseTensorProto]]:
    """The sparse tensors that a graph itself holds, with their names."""
    yield from ((sparse.values.name, sparse) for sparse in graph.sparse_initializer)
    for node in graph.node:
        if (sparse := sparse_value(node)) is not None and node.output:
            yield node.output[0], sparse


def node_damages(nodes: Iterable[ir.Node], opsets: Mapping[str, int]) -> Iterator[str]:
    """A phrase for each attribute that is of another type than its operator has, or names no data type."""
    for node in nodes:
        schema = find_schema(node, opsets)
        for name, attribute in node.attributes.items():
            wanted = None if schema is None else schema.attributes.get(name)
            if wanted is not None and attribute.type.value != wanted:
                yield f"{node.op_type} has a {name} of type {attribute.type.name}, not {ir.AttributeType(wanted).name}"
            elif name in TYPE_ATTRIBUTES and not standard(node.domain) and not _names_dtype(attribute):
                yield f"{node.op_type} names the data type {attribute.value}, which ONNX does not know"


def _names_dtype(attribute: ir.Attr) -> bool:
    return attribute.type != ir.AttributeType.INT or attribute.as_int() in {int(kind) for kind in ir.DataType}


def _damage(tensor: onnx.TensorProto) -> str | None:
    if tensor.data_type not in {int(kind) for kind in ir.DataType if kind != ir.DataType.UNDEFINED}:
        return f"has the data type {tensor.data_type}, which ONNX does not know"
    if any(size < 0 for size in tensor.dims):
        return f"has the shape {list(tensor.dims)}"
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        wrong = [entry for entry in tensor.external_data if entry.key in NUMBERS and not entry.value.isdecimal()]
        return f"has the external {wrong[0].key} {wrong[0].value!r}" if wrong else None
    size, kind = math.prod(tensor.dims), ir.DataType(tensor.data_type)
    held, needed = _held(tensor, size, kind)
    return f"has the shape {list(tensor.dims)} and holds {held} instead of {needed}" if held != needed else None


def _held(tensor: onnx.TensorProto, size: int, kind: ir.DataType) -> tuple[str, str]:
    """What a tensor holds, and what one of its shape must hold."""
    bits = None if kind == ir.DataType.STRING else int(kind.bitwidth)
    if tensor.HasField("raw_data") and bits is not None:
        return f"{len(tensor.raw_data)} bytes", f"{-(-size * bits // BYTE_BITS)} bytes"
    parts = 2 if kind in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128) else 1
    packed = bits is not None and bits < BYTE_BITS
    needed = -(-size * (bits or 0) // BYTE_BITS) if packed else size * parts
    return f"{sum(len(getattr(tensor, name)) for name in TYPED)} values", f"{needed} values"
