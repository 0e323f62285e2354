"""The trace of a module by torch's older exporter, TorchScript: one run is recorded, and no size is followed through.

Data flow: `AuthorModule` with real tensors → recorded graph whose parameters are inputs without data → products of
parameters become the abstract operators that binding knows → axes named as the outputs really vary with the inputs.

It records what one run did: a branch on a size stays as it was taken. Only the proof's grid tells whether that matters.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn

from truecast.errors import InputError
from truecast.trace.author import AuthorModule, try_call
from truecast.trace.explaining import explained
from truecast.trace.module import ModuleTrace, Recorded, roomy, traced
from truecast.trace.repeatable import require_function

LATEST = 20
"""The newest opset that the exporter of torch 2.13 writes."""
WRAPPER = "author."
ABSTRACT = "truecast"


def trace_torchscript(author: AuthorModule, opset: int) -> ModuleTrace:
    """Traces a module whose tensors are real, with whatever values.

    Raises:
        InputError: it does not take the examples, its code cannot be traced.
    """
    following = [axis for spec in author.inputs for axis in spec.axes.values() if axis.of]
    if following:
        raise InputError(f"The axis {following[0]} follows from another, which needs the exporter dynamo.")
    examples = roomy(author.inputs)
    names = list(require_function(author, examples))
    step = Recorded(author, lambda found: None).eval()
    model = _recorded(step, author, examples, names, opset)
    fold_constants(model, onnx_shape_inference=False)  # numbers of Python's are float64 until then
    counts = Counter(dict(_abstract(model)))
    RemoveUnusedNodesPass()(model)
    _name_outputs(model, author, examples)
    model.producer_name, model.producer_version = "truecast", None
    return traced(author, model, counts)


def _recorded(
    step: nn.Module, author: AuthorModule, examples: Sequence[Tensor], names: list[str], opset: int
) -> ir.Model:
    """The exporter's graph; parameters become initializers without data."""
    inputs = [spec.name for spec in author.inputs]
    axes = {spec.name: {i: axis.name for i, axis in spec.axes.items()} for spec in author.inputs}
    what = f"{type(author.module).__name__} cannot be traced by the TorchScript exporter"
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with (
            explained(what, "take the default one"),
            warnings.catch_warnings(),
            torch.no_grad(),
            TemporaryDirectory() as folder,
        ):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                step,
                tuple(examples),
                (path := Path(folder) / "recorded.onnx"),
                export_params=False,
                keep_initializers_as_inputs=True,  # else parameters of equal values, as new biases are, become one
                do_constant_folding=False,
                input_names=inputs,
                output_names=names,
                dynamic_axes={name: free for name, free in axes.items() if free},
                opset_version=opset,
                dynamo=False,
                verbose=False,
            )
            model = ir.from_proto(onnx.load(path))
    finally:
        logger.setLevel(level)
    for value in [value for value in model.graph.inputs if value.name not in inputs]:
        model.graph.inputs.remove(value)
        value.name = (value.name or "").removeprefix(WRAPPER)
        model.graph.initializers.add(value)
    return model


def _abstract(model: ir.Model) -> Iterator[tuple[str, int]]:
    """Products with a transposed parameter, and lookups in one, become operators that name it; counts them by leaf."""
    linears = embeddings = 0
    for node in list(model.graph):
        if (node.op_type == "MatMul" and _linear(node)) or (node.op_type == "Gemm" and _gemm(node)):
            linears += 1
        elif node.op_type == "Gather" and _embedding(node):
            embeddings += 1
    yield from ((leaf, count) for leaf, count in (("linear", linears), ("embedding", embeddings)) if count)


def _parameter(value: ir.Value | None, rank: int) -> str | None:
    """The name of a parameter of that rank; None for anything else."""
    empty = value is not None and value.is_initializer() and value.const_value is None
    if not empty or value is None or value.shape is None or len(value.shape) != rank:
        return None
    return value.name


def _linear(node: ir.Node) -> bool:
    """MatMul(x, Transpose(W)) is a product with W."""
    turned = node.inputs[1].producer() if node.inputs[1] is not None else None
    if turned is None or turned.op_type != "Transpose" or _parameter(turned.inputs[0], 2) is None:
        return False
    return _product(node, turned.inputs[0], None)


def _gemm(node: ir.Node) -> bool:
    """Gemm(x, W, b) with W transposed and no factors is a product with W."""
    plain = all(node.attributes[key].as_float() == 1.0 for key in ("alpha", "beta") if key in node.attributes)
    turned = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    straight = "transA" not in node.attributes or node.attributes["transA"].as_int() == 0
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if not (plain and turned and straight) or _parameter(node.inputs[1], 2) is None:
        return False
    if bias is not None and _parameter(bias, 1) is None:
        return False
    return _product(node, node.inputs[1], bias)


def _product(node: ir.Node, weight: ir.Value | None, bias: ir.Value | None) -> bool:
    assert weight is not None and weight.shape is not None
    outputs, inputs = weight.shape
    attributes: dict[str, Any] = {
        "weight": weight.name or "",
        "bias": bias.name or "" if bias is not None else "",
        "transposed": 0,
        "K": inputs,
        "N": outputs,
    }
    _replace(node, ir.node("Linear", [node.inputs[0]], attributes, domain=ABSTRACT))
    return True


def _embedding(node: ir.Node) -> bool:
    """Gather(W, ids) along the rows of a parameter is a lookup."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    name = _parameter(node.inputs[0], 2)
    if name is None or axis != 0 or not name.endswith(".weight"):
        return False
    assert node.inputs[0] is not None and node.inputs[0].shape is not None
    rows, width = node.inputs[0].shape
    attributes: dict[str, Any] = {"weight": name, "V": rows, "H": width}
    _replace(node, ir.node("Embedding", [node.inputs[1]], attributes, domain=ABSTRACT))
    return True


def _replace(node: ir.Node, by: ir.Node) -> None:
    assert node.graph is not None
    old, new = node.outputs[0], by.outputs[0]
    new.shape, new.type = old.shape, old.type
    node.graph.insert_before(node, by)
    name, end = old.name, old.is_graph_output()
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)
    if end:
        new.name = name


def _name_outputs(model: ir.Model, author: AuthorModule, examples: Sequence[Tensor]) -> None:
    """The sizes of the outputs: named where they follow a free axis, numbers where they stay."""
    grown = {name: _sizes(author, _grown(author, examples, name)) for name in author.axes}
    first = _sizes(author, examples)
    sizes = {axis.name: x.shape[i] for s, x in zip(author.inputs, examples, strict=True) for i, axis in s.axes.items()}
    for value in model.graph.outputs:
        name = value.name or ""
        dims: list[int | str] = []
        for index, size in enumerate(first[name]):
            moved = [axis for axis, found in grown.items() if found[name][index] != size]
            same = len(moved) == 1 and size == sizes[moved[0]]
            dims.append(size if not moved else moved[0] if same else f"{name}_{index}")
        value.shape = ir.Shape(dims)


def _sizes(author: AuthorModule, tensors: Sequence[Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in try_call(author, tensors).items()}


def _grown(author: AuthorModule, examples: Sequence[Tensor], name: str) -> list[Tensor]:
    """The examples, twice as large along one free axis."""
    found = []
    for spec, tensor in zip(author.inputs, examples, strict=True):
        for index, axis in spec.axes.items():
            tensor = torch.cat([tensor, tensor], index) if axis.name == name else tensor
        found.append(tensor)
    return found
