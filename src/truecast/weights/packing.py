"""From abstract weight operators to those of ONNX Runtime, each with the bindings of its operands.

Data flow: `truecast::Linear` and `truecast::Embedding` name a parameter → the precision decides the packing → the node
becomes MatMul, FusedMatMul, MatMulNBits, Gather or GatherBlockQuantized → a `Binding` per operand, and one for every
other initializer of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from truecast.checkpoint.model import Array, StoredTensor
from truecast.dialects.expand import CONTRIB, NodeWriter
from truecast.errors import InputError
from truecast.weights.binding import Alias, Binding, Operand, stacked
from truecast.weights.quantize import blocks_per_row, quantize_rows
from truecast.weights.sources import Sources, finite_rows


@dataclass(frozen=True)
class Precision:
    """How weights are held. `bits` is None for floats; `activations` concerns the products of quantized weights.

    `as_stored` prefers operators that read a float weight as the checkpoint lays it out, [out, in].
    """

    name: str
    dtype: ir.DataType
    bits: int | None = None
    block: int = 32
    activations: str = "int8"
    as_stored: bool = False

    @property
    def accuracy_level(self) -> int:
        """MatMulNBits' accuracy level: 4 takes int8 activations, 0 floats."""
        return 4 if self.activations == "int8" else 0


@dataclass
class Packer:
    """Packs the weights of one graph; `bindings` grows as nodes are packed."""

    model: ir.Model
    sources: Sources
    precision: Precision
    embedding: str
    head: str
    bindings: list[Binding] = field(default_factory=list)
    aliases: list[Alias] = field(default_factory=list)
    _shared: dict[str, list[ir.Value]] = field(default_factory=dict)

    def pack(self) -> list[Binding]:
        """Packs every weight; afterwards the graph holds no abstract operator and every initializer is bound."""
        linears = [node for node in self.model.graph if node.op_type == "Linear"]
        embeddings = [node for node in self.model.graph if node.op_type == "Embedding"]
        tied = self._tied()
        for node in embeddings:
            self._embedding(node, tied)
        if self.precision.bits is not None:
            for group in _siblings(linears):
                self._block_siblings(group)
        for node in linears:
            if node.graph is not None:
                self._linear(node, tied)
        bound = {operand.name for binding in self.bindings for operand in binding.operands}
        bound |= {alias.name for alias in self.aliases}
        for name, value in self.model.graph.initializers.items():
            if name not in bound and value.const_value is None:
                self._dense(name, value)
        return self.bindings

    def _tied(self) -> bool:
        """Whether head and embedding are one weight, so that one table may serve both."""
        if not self.head:
            return False
        return self.sources[self.head] is self.sources[self.embedding]

    def _add(self, binding: Binding) -> list[ir.Value]:
        graph = self.model.graph
        if any(binding.operands == other.operands for other in self.bindings):
            return [graph.initializers[operand.name] for operand in binding.operands]
        values = []
        for operand in binding.operands:
            value = ir.Value(name=operand.name, shape=ir.Shape(operand.shape), type=ir.TensorType(operand.dtype))
            graph.initializers.add(value)
            values.append(value)
        self.bindings.append(binding)
        return values

    # Linear -----------------------------------------------------------------------------------------------------

    def _linear(self, node: ir.Node, tied: bool) -> None:
        weight = node.attributes["weight"].as_string()
        if self.precision.bits is None:
            self._float_linear(node, weight, share=tied and weight == self.head)
        else:
            self._block_linear(node, weight, share=tied and weight == self.head)

    def _bias(self, node: ir.Node) -> ir.Value | None:
        name = node.attributes["bias"].as_string()
        return self._vector(name) if name else None

    def _vector(self, name: str) -> ir.Value:
        if name not in self.model.graph.initializers:
            self._add(dense_binding(name, self.sources[name], self.precision.dtype))
        return self.model.graph.initializers[name]

    def _block_siblings(self, nodes: Sequence[ir.Node]) -> None:
        """Products of one input as one product: queries, keys and values; its result is split again."""
        weights = [node.attributes["weight"].as_string() for node in nodes]
        sizes = [node.attributes["N"].as_int() for node in nodes]
        name = "+".join([_site(weights[0]), *(_site(w).rpartition(".")[2] for w in weights[1:])])
        parts = [block_binding(w, self.sources[w], self.precision, transposed=False) for w in weights]
        operands = self._add(stacked(parts, [f"{name}.codes", f"{name}.scales"]))
        bias = None
        if names := [b for node in nodes if (b := node.attributes["bias"].as_string())]:
            vectors = [dense_binding(b, self.sources[b], self.precision.dtype) for b in names]
            bias = self._add(stacked(vectors, [f"{name}.bias"]))[0]
        write = NodeWriter(nodes[0])
        product = self._product(write, nodes[0], operands, bias, sum(sizes), name)
        splits = write.ops("Split", [product, write.ints(*sizes)], [_site(w) for w in weights], {"axis": -1})
        for node, result in zip(nodes, splits, strict=True):
            finish(node, result)

    def _product(
        self,
        write: NodeWriter,
        node: ir.Node,
        operands: Sequence[ir.Value],
        bias: ir.Value | None,
        outputs: int,
        name: str,
    ) -> ir.Value:
        assert self.precision.bits is not None
        attributes = {
            "K": node.attributes["K"].as_int(),
            "N": outputs,
            "bits": self.precision.bits,
            "block_size": self.precision.block,
            "accuracy_level": self.precision.accuracy_level,
        }
        inputs: list[ir.Value | None] = [node.inputs[0], *operands]
        if bias is not None:
            inputs += [None, None, bias]
        return write.op("MatMulNBits", inputs, attributes, domain=CONTRIB, name=name)

    def _block_linear(self, node: ir.Node, weight: str, share: bool) -> None:
        operands = self._shared.get(self.embedding, []) if share else []
        if len(operands) != 2:  # a table of floats cannot serve both
            transposed = bool(node.attributes["transposed"].as_int())
            binding = block_binding(weight, self.sources[weight], self.precision, transposed)
            operands = self._add(binding)
        outputs = node.attributes["N"].as_int()
        finish(node, self._product(NodeWriter(node), node, operands, self._bias(node), outputs, _site(weight)))

    def _float_linear(self, node: ir.Node, weight: str, share: bool) -> None:
        write = NodeWriter(node)
        bias = self._bias(node)
        name = _site(weight)
        transposed = bool(node.attributes["transposed"].as_int())
        if share or (self.precision.as_stored and not transposed):
            binding = dense_binding(weight, self.sources[weight], self.precision.dtype)
            table = self._shared[self.embedding][0] if share else self._add(binding)[0]
            product = write.op("FusedMatMul", [node.inputs[0], table], {"transB": 1}, domain=CONTRIB, name=name)
        else:
            binding = dense_binding(weight, self.sources[weight], self.precision.dtype, transpose=not transposed)
            product = write.op("MatMul", [node.inputs[0], *self._add(binding)], name=name)
        if bias is not None:
            product.name = f"{name}.product"
            product = write.op("Add", [product, bias], name=name)
        finish(node, product)

    # Embedding --------------------------------------------------------------------------------------------------

    def _embedding(self, node: ir.Node, tied: bool) -> None:
        weight, width = node.attributes["weight"].as_string(), node.attributes["H"].as_int()
        is_tokens = weight == self.embedding
        if self.precision.bits is not None and is_tokens and width % self.precision.block == 0:
            self._block_embedding(node, weight, tied)
        else:
            self._float_embedding(node, weight)

    def _block_embedding(self, node: ir.Node, weight: str, tied: bool) -> None:
        write, precision = NodeWriter(node), self.precision
        assert precision.bits is not None
        binding = block_binding(weight, self.sources[weight], precision, transposed=False)
        if tied:  # the head wants the codes in blocks, the lookup in rows: one table, two shapes
            self._shared[weight] = self._add(binding)
            scales = self._shared[weight][1]
            table = self._alias(binding.operands[0], f"{weight}.rows")
        else:
            table, scales = self._add(in_rows(binding))
        attributes = {"bits": precision.bits, "block_size": precision.block, "gather_axis": 0, "quantize_axis": 1}
        inputs = [table, node.inputs[0], scales]
        finish(node, write.op("GatherBlockQuantized", inputs, attributes, domain=CONTRIB, name=_site(weight)))

    def _alias(self, operand: Operand, name: str) -> ir.Value:
        """The bytes of an operand as a matrix of rows, under a name of its own."""
        shape = _row_shape(operand)
        alias = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(operand.dtype))
        self.model.graph.initializers.add(alias)
        self.aliases.append(Alias(name, operand.name, shape))
        return alias

    def _float_embedding(self, node: ir.Node, weight: str) -> None:
        if weight not in self._shared:
            self._shared[weight] = self._add(dense_binding(weight, self.sources[weight], self.precision.dtype))
        table = self._shared[weight]
        finish(node, NodeWriter(node).op("Gather", [*table, node.inputs[0]], {"axis": 0}, name=_site(weight)))

    def _dense(self, name: str, value: ir.Value) -> None:
        dtype = value.dtype or self.precision.dtype
        self.bindings.append(dense_binding(name, self.sources[name], dtype))


def _siblings(nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """Groups of linear leaves that feed one attention operator from one input, biased alike: worth one product."""
    groups: dict[tuple[ir.Value | None, ir.Node], list[ir.Node]] = {}
    for node in nodes:
        reader = _attention_of(node)
        if reader is not None and not node.attributes["transposed"].as_int():
            groups.setdefault((node.inputs[0], reader), []).append(node)
    return [
        group
        for group in groups.values()
        if len(group) == 3 and len({bool(node.attributes["bias"].as_string()) for node in group}) == 1
    ]


def _attention_of(node: ir.Node) -> ir.Node | None:
    """The attention operator that reads this leaf, directly or through a rotation, a norm or a reshape."""
    value = node.outputs[0]
    while True:
        readers = [use.node for use in value.uses()]
        if len(readers) != 1:
            return None
        reader = readers[0]
        if reader.op_type == "GroupQueryAttention":
            return reader
        if reader.op_type not in PER_HEAD:
            return None
        value = reader.outputs[0]


PER_HEAD = frozenset({"Rotary", "RotaryEmbedding", "SimplifiedLayerNormalization", "LayerNormalization", "Reshape"})
"""Operators between a projection and attention that leave the heads where they are."""


def _site(weight: str) -> str:
    """The name of the module that owns a weight; its output value carries it, so that a proof can find it."""
    return weight.removesuffix(".weight")


def finish(node: ir.Node, result: ir.Value) -> None:
    """Lets `result` stand in for the only output of `node`, and removes the node."""
    output = node.outputs[0]
    result.shape, result.type = output.shape, output.type
    if output.is_graph_output():
        result.name = output.name
    ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


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
                strip[:, row:end] = cast(finite_rows(tensor, row, end)[:, start:stop].T, target, name)
            return [strip]

        operand = Operand(f"{name}.transposed", dtype, (width, columns))
        return Binding((operand,), (tensor.name,), f"dense {_word(dtype)}, transposed", width, columns, produce)

    def produce_rows(start: int, stop: int) -> Sequence[Array]:
        return [cast(finite_rows(tensor, start, stop), target, name)]

    rows = tensor.shape[0] if tensor.shape else 1
    operand = Operand(name, dtype, tensor.shape)
    same = tensor if tensor.verbatim and tensor.dtype == target else None
    packing, cost = f"dense {_word(dtype)}", tensor.size // max(rows, 1)
    return Binding((operand,), (tensor.name,), packing, rows, cost, produce_rows, same)


ROWS_AT_ONCE = 1 << 24
"""Weights read at once while transposing (64 MiB of float32)."""


def cast(values: Array, target: np.dtype[Any], name: str) -> Array:
    """Float32 values as `target`; raises InputError when float16 cannot hold them."""
    with np.errstate(over="ignore"):
        result: Array = values.astype(target)
    if target == np.float16 and not np.isfinite(result).all():
        raise InputError(f"{name!r} holds values beyond float16's range (65504); choose --precision fp32 or int4.")
    return result


def block_binding(name: str, tensor: StoredTensor, precision: Precision, transposed: bool) -> Binding:
    """Codes and scales of a weight [out, in] (or [in, out] when transposed), quantized along `in`."""
    bits, block = precision.bits, precision.block
    assert bits is not None
    rows, width = tensor.shape[::-1] if transposed else tensor.shape
    blocks = blocks_per_row(width, block)
    scale = precision.dtype

    def produce(start: int, stop: int) -> Sequence[Array]:
        if transposed:
            values = np.ascontiguousarray(finite_rows(tensor, 0, width)[:, start:stop].T)
        else:
            values = finite_rows(tensor, start, stop)
        codes, scales = quantize_rows(values, bits, block)
        return [codes, scales.astype(scale.numpy())]

    return Binding(
        operands=(
            Operand(f"{name}.codes", ir.DataType.UINT8, (rows, blocks, block * bits // 8)),
            Operand(f"{name}.scales", scale, (rows, blocks)),
        ),
        sources=(tensor.name,),
        packing=f"int{bits} block {block}, symmetric",
        rows=rows,
        row_cost=width,
        produce=produce,
    )


def in_rows(binding: Binding) -> Binding:
    """A block binding whose codes are a matrix of rows, as GatherBlockQuantized wants them."""
    codes, scales = binding.operands
    return replace(binding, operands=(replace(codes, shape=_row_shape(codes)), scales))


def _row_shape(operand: Operand) -> tuple[int, int]:
    return operand.shape[0], operand.nbytes // operand.shape[0]


def _word(dtype: ir.DataType) -> str:
    return {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16"}.get(dtype, dtype.name.lower())
