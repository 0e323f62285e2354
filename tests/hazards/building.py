"""Small graphs made in code, and what a hazard is: one model with one problem, and its twin without."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from truecast.runtime.providers import LOAD_ERRORS

WIDTH = 64
"""Features; a weight of WIDTH by WIDTH is large enough for every rule to look at."""
OPSET, IR_VERSION = 20, 10
Dims = Sequence[int | str]
Make = Callable[[Path, bool], Path]
"""(folder, with the hazard or without) → the ONNX file."""


@dataclass(frozen=True)
class Hazard:
    """`make` writes a model that must get exactly the finding `code`, and a twin that must get none.

    `provider`, `run`, `session` and `saturating` are how it is diagnosed. `besides` are codes that follow from the
    problem and come with it.
    """

    code: str
    name: str
    make: Make
    provider: str = "cpu"
    run: bool = False
    session: Mapping[str, str] = field(default_factory=dict)
    saturating: bool = False
    besides: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.code}-{self.name}"


def weight(name: str, *shape: int, dtype: Any = np.float32, scale: float = 0.1) -> onnx.TensorProto:
    """Random values that depend on the name."""
    random = np.random.default_rng(sum(map(ord, name)))
    return numpy_helper.from_array((scale * random.standard_normal(shape)).astype(dtype), name)


def constant(name: str, values: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    """Given values."""
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def tensor(name: str, dims: Dims | None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """An input or output; a name among the dims is a free axis."""
    return helper.make_tensor_value_info(name, dtype, dims)


def node(
    operator: str, inputs: Sequence[str], outputs: Sequence[str], name: str = "", **attributes: Any
) -> onnx.NodeProto:
    """A node; operators of com.microsoft are written with their domain, as "com.microsoft.QAttention"."""
    domain, _, kind = operator.rpartition(".")
    return helper.make_node(kind, inputs, outputs, name or f"{kind}_{outputs[0]}", domain=domain, **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
    opset: int = OPSET,
    ir_version: int = IR_VERSION,
) -> onnx.ModelProto:
    """The model with every domain that a node uses."""
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(weights))
    domains = sorted({n.domain for n in nodes if n.domain})
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def save(made: onnx.ModelProto, folder: Path) -> Path:
    """Writes a model."""
    path = folder / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def rows(name: str = "x", dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """Rows of features."""
    return tensor(name, ["batch", WIDTH], dtype)


def layer(source: str = "x", result: str = "y", matrix: str = "w") -> onnx.NodeProto:
    """A product with a square weight."""
    return node("MatMul", [source, matrix], [result])


def linear(opset: int = OPSET, ir_version: int = IR_VERSION) -> onnx.ModelProto:
    """The plainest clean model: one product."""
    return model([layer()], [rows()], [rows("y")], [weight("w", WIDTH, WIDTH)], opset, ir_version)


def chain(
    middle: Sequence[onnx.NodeProto], result: str, weights: Sequence[onnx.TensorProto] = (), **more: Any
) -> onnx.ModelProto:
    """x → some nodes → `result` → product → y."""
    every = [weight("w", WIDTH, WIDTH), *weights]
    return model([*middle, layer(result)], [rows()], [rows("y")], every, **more)


def loads(path: Path) -> bool:
    """Whether ONNX Runtime loads a file."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except LOAD_ERRORS:
        return False
    return True
