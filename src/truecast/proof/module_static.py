"""Tier 1 of a module: its graph as it lies, against what the manifest says and what was asked for."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from truecast.artifact import Check, Manifest
from truecast.proof.static import (
    LARGEST_IR,
    LARGEST_OPSET,
    TIER,
    activation_faults,
    dims,
    doubles,
    interface_faults,
    standard_checks,
)
from truecast.proof.tally import check, counted
from truecast.trace.author import AuthorModule


def module_graph_checks(model: ir.Model, manifest: Manifest, author: AuthorModule) -> list[Check]:
    """Every check of the graph that needs no session."""
    opset = model.opset_imports.get("", 0)
    domains = f"domains {', '.join(sorted(model.opset_imports)) or 'none'}"
    free = f"{len(author.axes)} free axes" if author.axes else "no axis is free"
    return [
        check(TIER, "opset", float(opset), LARGEST_OPSET, "", domains),
        check(TIER, "IR version", float(model.ir_version), LARGEST_IR),
        counted(TIER, "operators of the stamped opset", list(_unknown(model, opset)), "nodes"),
        counted(TIER, "float64 tensors", list(doubles(model)), "tensors"),
        counted(TIER, "dynamic axes", list(_axis_faults(model, author)), "faults", free),
        counted(TIER, "interface as in the manifest", list(interface_faults(model, manifest)), "faults"),
        counted(TIER, "activations as in the manifest", list(activation_faults(model, manifest)), "products"),
        *standard_checks(model, manifest),
    ]


def _unknown(model: ir.Model, opset: int) -> Iterator[str]:
    """ONNX operators that the stamped opset does not have: exporters have been seen to mix versions."""
    for node in model.graph:
        known = {"SimplifiedLayerNormalization"}  # ONNX Runtime keeps this one in the ONNX domain
        if node.domain == "" and node.op_type not in known and not onnx.defs.has(node.op_type, opset):
            yield f"{node.name} ({node.op_type})"


def _axis_faults(model: ir.Model, author: AuthorModule) -> Iterator[str]:
    """Input axes that are not as free as asked, and outputs without a shape."""
    graph_inputs = {value.name: value for value in model.graph.inputs}
    for spec in author.inputs:
        if spec.name not in graph_inputs:
            continue  # an input that no output depends on
        wanted = [spec.axes[i].name if i in spec.axes else int(n) for i, n in enumerate(spec.example.shape)]
        if dims(graph_inputs[spec.name]) != wanted:
            yield f"{spec.name} is {dims(graph_inputs[spec.name])}, not {wanted}"
    for value in model.graph.outputs:
        if value.shape is None:
            yield f"the output {value.name} has no shape"
