"""Sparse weights, read as the dense tensors that ONNX Runtime makes of them when it loads a model.

Data flow: a graph with sparse initializers, or Constant nodes with a sparse value → placeholders for onnx-ir →
lazy dense tensors in their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

SparseTensors = Mapping[str, onnx.SparseTensorProto]
PLACEHOLDER = "sparse"
LARGEST_BYTES = 1 << 28
"""Dense bytes up to which a sparse weight is made dense so that its elements can be looked at."""


def set_apart(graph: onnx.GraphProto) -> dict[str, onnx.SparseTensorProto]:
    """Puts a placeholder for each sparse tensor of the graph and its subgraphs; returns the tensors by name."""
    found: dict[str, onnx.SparseTensorProto] = {}
    for holder in graphs_in(graph):
        here = {sparse.values.name: sparse for sparse in holder.sparse_initializer}
        for node in [node for node in holder.node if sparse_value(node) is not None]:
            here[node.output[0]] = onnx.SparseTensorProto()
            here[node.output[0]].CopyFrom(sparse_value(node))
            holder.node.remove(node)
        holder.initializer.extend(_placeholder(name, sparse) for name, sparse in here.items())
        found |= here
    return found


def sparse_value(node: onnx.NodeProto) -> onnx.SparseTensorProto | None:
    """The sparse tensor that a Constant node makes."""
    return next((each.sparse_tensor for each in node.attribute if each.HasField("sparse_tensor")), None)


def graphs_in(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph inside its nodes."""
    yield graph
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from graphs_in(inner)


def _placeholder(name: str, sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    made = onnx.TensorProto(name=name, data_type=sparse.values.data_type, dims=sparse.dims)
    made.data_location = onnx.TensorProto.EXTERNAL
    made.external_data.add(key="location", value=PLACEHOLDER)
    return made


def put_back(model: ir.Model, tensors: SparseTensors) -> None:
    """Lets each placeholder be the dense tensor, which is made when somebody reads it."""
    for graph in (model.graph, *model.graph.subgraphs()) if tensors else ():
        for name, value in graph.initializers.items():
            if name in tensors and value.const_value is not None:
                held = value.const_value
                value.const_value = ir.LazyTensor(
                    lambda name=name: ir.tensor(dense(tensors[name])),  # type: ignore[misc]
                    dtype=held.dtype,
                    shape=ir.Shape(held.shape.numpy()),
                    cache=held.nbytes <= LARGEST_BYTES,
                    name=name,
                )


def dense(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """The dense array: zeros, and the values at their indices (of the flattened array, or one for each axis)."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    made = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        made.reshape(-1)[indices] = values
    else:
        made[tuple(indices.T)] = values
    return made


def sparse_damage(sparse: onnx.SparseTensorProto) -> str | None:
    """Why a sparse tensor cannot be what it declares; None when it can."""
    parts = (sparse.values, sparse.indices)
    if any(part.data_location == onnx.TensorProto.EXTERNAL for part in parts):
        return "is sparse with its parts in another file, which cannot be read here"
    count, shape = len(sparse.values.dims) == 1 and sparse.values.dims[0], list(sparse.indices.dims)
    if sparse.indices.data_type != onnx.TensorProto.INT64 or shape not in ([count], [count, len(sparse.dims)]):
        return f"is sparse with {count} values and indices of the shape {shape}"
    indices = numpy_helper.to_array(sparse.indices)
    limits = np.array(sparse.dims if len(shape) == 2 else [np.prod(sparse.dims, dtype=np.float64)])
    return "is sparse with indices outside its shape" if np.any((indices < 0) | (indices >= limits)) else None
