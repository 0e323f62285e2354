"""Graphs of abstract weight operators, as a trace leaves them for packing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.weights.stored import random, sources
from truecast.checkpoint.model import StoredTensor
from truecast.weights.packing import Packer
from truecast.weights.precision import Precision

WIDTH = 64
"""Of the states that attention's products read."""


def linear(source: ir.Value, weight: str, shape: tuple[int, int], bias: str = "", transposed: bool = False) -> ir.Node:
    """`truecast::Linear` of a weight [out, in], or [in, out] when transposed."""
    outputs, inputs = shape[::-1] if transposed else shape
    attributes: dict[str, Any] = {"weight": weight, "bias": bias, "transposed": int(transposed)}
    result = ir.Value(name=f"{weight}.result", type=ir.TensorType(ir.DataType.FLOAT))
    return ir.node("Linear", [source], {**attributes, "K": inputs, "N": outputs}, domain="truecast", outputs=[result])


def embedding(ids: ir.Value, weight: str, shape: tuple[int, int]) -> ir.Node:
    attributes: dict[str, Any] = {"weight": weight, "V": shape[0], "H": shape[1]}
    result = ir.Value(name=f"{weight}.result", type=ir.TensorType(ir.DataType.FLOAT))
    return ir.node("Embedding", [ids], attributes, domain="truecast", outputs=[result])


def value(name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def model(inputs: list[ir.Value], nodes: list[ir.Node], outputs: list[ir.Value]) -> ir.Model:
    imports = {"": 21, "com.microsoft": 1, "truecast": 1}
    return ir.Model(ir.Graph(inputs, outputs, nodes=nodes, opset_imports=imports, name="g"), ir_version=10)


def kinds(packer: Packer) -> Counter[str]:
    return Counter(node.op_type for node in packer.model.graph if node.op_type != "Constant")


def packed(
    graph: ir.Model,
    arrays: Mapping[str, np.ndarray | StoredTensor],
    precision: Precision,
    embedding: str = "",
    head: str = "",
    tied: Mapping[str, str] | None = None,
) -> Packer:
    """The graph with its weights packed."""
    packer = Packer(graph, sources(arrays, tied), precision, embedding, head)
    packer.pack()
    graph.opset_imports.pop("truecast")
    return packer


def attention(biases: int = 3, shared_input: bool = True) -> ir.Model:
    """Three products of 32, 16 and 16 outputs that feed one attention operator, the key's through a norm."""
    x, other = (value(name, ir.DataType.FLOAT, "b", "s", WIDTH) for name in ("x", "other"))
    past = [value(name, ir.DataType.FLOAT, "b", 1, "p", 16) for name in ("past_key", "past_value")]
    last, total = value("last", ir.DataType.INT32, "b"), value("total", ir.DataType.INT32)
    names = ["a.q_proj", "a.k_proj", "a.v_proj"]
    sizes = [32, 16, 16]
    products = [
        linear(x if shared_input or i else other, f"{name}.weight", (size, WIDTH), f"{name}.bias" if i < biases else "")
        for i, (name, size) in enumerate(zip(names, sizes, strict=True))
    ]
    scale = ir.node("Constant", [], {"value": ir.tensor(random(16, seed=9))})
    norm = ir.node("SimplifiedLayerNormalization", [products[1].outputs[0], scale.outputs[0]], {"axis": -1})
    states = [products[0].outputs[0], norm.outputs[0], products[2].outputs[0]]
    outputs = [ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in ("out", "key", "value")]
    attributes = {"num_heads": 2, "kv_num_heads": 1}
    node = ir.node(
        "GroupQueryAttention",
        [*states, *past, last, total],
        attributes,
        domain="com.microsoft",
        outputs=outputs,
    )
    inputs = [x, *([] if shared_input else [other]), *past, last, total]
    return model(inputs, [*products, scale, norm, node], outputs)


def feeds() -> dict[str, np.ndarray]:
    """Inputs of `attention`."""
    empty = np.zeros((2, 1, 0, 16), np.float32)
    lengths = {"last": np.array([2, 2], np.int32), "total": np.array(3, np.int32)}
    return {"x": random(2, 3, WIDTH), "past_key": empty, "past_value": empty, **lengths}
