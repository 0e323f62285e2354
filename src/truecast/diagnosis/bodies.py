"""Operators that ONNX defines by others: what a runtime runs, and infers from, where nothing takes the operator itself.

Data flow: a node with the dtypes of its inputs → ONNX's own inliner → its parts as nodes of a small graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir
from onnx.inliner import inline_selected_functions

from truecast.diagnosis.schemas import STANDARD, standard


def parts_of(node: ir.Node, opsets: Mapping[str, int], types: Mapping[ir.Value, ir.DataType]) -> ir.Graph | None:
    """The graph that a standard operator stands for; None where that depends on what is not known here."""
    named = {value.name or "": value for value in node.inputs if value is not None}
    if standard(node.domain) or any(value not in types for value in named.values()):
        return None
    inputs = [onnx.helper.make_tensor_value_info(name, int(types[value]), None) for name, value in named.items()]
    ends = [onnx.helper.make_tensor_value_info(value.name or "", 0, None) for value in node.outputs if value.name]
    graph = onnx.helper.make_graph([ir.to_proto(node)], "parts", inputs, ends)
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    try:
        inlined = _inlined(onnx.helper.make_model(graph, opset_imports=imports), {node.op_type})
    except (RuntimeError, ValueError):  # as the inliner says that it cannot
        return None
    parts = ir.from_proto(inlined).graph
    return None if any(part.op_type == node.op_type for part in parts) else parts


def is_stale(node: ir.Node, parts: ir.Graph, opset: int) -> bool:
    """Whether the parts were written for operators that the opset has newer versions of.

    ONNX Runtime then leaves the operator as it is (Swish-24 at opset 25, Softplus-22 at 22). Seen in sessions: not so
    where the parts depend on the node's dtypes, as those of GroupNormalization.
    """
    schema: Any = onnx.defs.get_schema(node.op_type, opset, "")
    written = max((version for version in schema.function_opset_versions if version <= opset), default=opset)
    return any(
        onnx.defs.get_schema(part.op_type, written, "").since_version
        != onnx.defs.get_schema(part.op_type, opset, "").since_version
        for part in parts
    )


def with_parts(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with parts in place of the operators that ONNX infers no shapes of but through their parts."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in STANDARD), 1)
    operators = {node.op_type for node in model.graph.node if node.domain in STANDARD}
    opaque = {name for name in operators if _is_opaque(name, opset)}
    return _inlined(model, opaque) if opaque else model


def _is_opaque(name: str, opset: int) -> bool:
    try:
        schema: Any = onnx.defs.get_schema(name, opset, "")
    except onnx.defs.SchemaError:
        return False
    has_parts = schema.has_function or schema.has_context_dependent_function
    return bool(has_parts and not schema.has_type_and_shape_inference_function)


def _inlined(model: onnx.ModelProto, operators: set[str]) -> onnx.ModelProto:
    return inline_selected_functions(model, [("", name) for name in sorted(operators)], False, True)
