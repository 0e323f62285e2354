"""TC4xx: dtypes that cost speed, do not load, or leaked in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from truecast.diagnosis.evidence import Evidence, label
from truecast.diagnosis.inference import clashing_dtypes, forbidden_dtypes, node_types
from truecast.diagnosis.model import Seen, seen
from truecast.diagnosis.placement import Place
from truecast.diagnosis.rules.kernels import LARGEST_OPSET, operators
from truecast.diagnosis.rules.rule import ERROR, WARNING, Rule
from truecast.diagnosis.schemas import STANDARD
from truecast.diagnosis.ways import way_to_allow

LARGEST_HALF = float(np.finfo(np.float16).max)


def half_on_cpu(evidence: Evidence) -> Seen | None:
    """Float16 nodes that the processor runs in float32 between casts, or as their parts."""
    if evidence.provider != "cpu":
        return None
    nodes = [n for n in evidence.placement.at(Place.CAST, Place.EXPANDED) if _reads(n, ir.DataType.FLOAT16, evidence)]
    held = {value for node in nodes for value in node.inputs if value in evidence.weight_of}
    grown = 2 * sum(evidence.weight_of[value].nbytes for value in held if value is not None)
    return seen(map(label, nodes), f"{operators(nodes, evidence)}; their weights in memory", nbytes=grown)


def bfloat16_on_cpu(evidence: Evidence) -> Seen | None:
    """Bfloat16 arithmetic, for which the processor has no kernels and gets no casts."""
    if evidence.provider != "cpu":
        return None
    nodes = [n for n in evidence.placement.at(Place.NOWHERE) if _touches(n, ir.DataType.BFLOAT16, evidence)]
    return seen(map(label, nodes), operators(nodes, evidence))


def _reads(node: ir.Node, dtype: ir.DataType, evidence: Evidence) -> bool:
    return any(evidence.types.get(value) is dtype for value in node.inputs if value is not None)


def _touches(node: ir.Node, dtype: ir.DataType, evidence: Evidence) -> bool:
    return any(evidence.types.get(value) is dtype for value in (*node.inputs, *node.outputs) if value is not None)


def double_leak(evidence: Evidence) -> Seen | None:
    """Float64 arithmetic that remains after constants are folded."""
    nodes = [
        node
        for node in evidence.nodes
        if node.op_type != "Constant"
        and not all(value in evidence.constants for value in node.outputs)
        and any(evidence.types.get(value) is ir.DataType.DOUBLE for value in node.outputs)
    ]
    fed = any(value.dtype is ir.DataType.DOUBLE for value in evidence.graph.inputs)
    return seen(map(label, nodes), operators(nodes, evidence), fix=FLOAT_INPUTS if fed else None)


FLOAT_INPUTS = "Export with float32 inputs: the model takes float64."


def mixed_dtypes(evidence: Evidence) -> Seen | None:
    """One node whose inputs have different dtypes where its operator wants one."""
    return seen(_clashes(evidence))


def _clashes(evidence: Evidence) -> Iterator[str]:
    for node in evidence.nodes:
        schema = evidence.schema(node)
        if schema is None:
            continue
        for names in clashing_dtypes(schema, node_types(node, schema, evidence.types)):
            yield f"{label(node)} ({' and '.join(sorted(names))})"


def not_allowed(evidence: Evidence) -> Seen | None:
    """A dtype that the operator's definition does not allow at all."""
    held = list(_forbidden(evidence))
    fixes = dict.fromkeys(way_to_allow(node, names, evidence, LARGEST_OPSET) for node, names in held)
    return seen((f"{label(node)} ({', '.join(names)})" for node, names in held), fix=" ".join(fixes))


def _forbidden(evidence: Evidence) -> Iterator[tuple[ir.Node, list[str]]]:
    for node in evidence.nodes:
        schema = evidence.schema(node)
        if schema is not None and node.domain in STANDARD:
            names = sorted(forbidden_dtypes(node, schema, evidence.types))
            if names:
                yield node, names


def overflows_half(evidence: Evidence) -> Seen | None:
    """A constant beyond float16 that a Cast turns into infinity; minus infinity alone is a usual mask."""
    names = []
    for node in evidence.nodes:
        target = node.attributes.get("to")
        if node.op_type == "Cast" and node.inputs and target is not None and target.as_int() == ir.DataType.FLOAT16:
            values = evidence.values(node.inputs[0])
            if values is not None and values.dtype.kind == "f" and _too_large(values):
                names.append(f"{label(node)} ({float(np.abs(values).max()):.3g})")
    return seen(names)


def _too_large(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    return bool(finite.size and np.abs(finite).max() > LARGEST_HALF)


RULES = (
    Rule(
        "TC401",
        WARNING,
        "float16 on the processor",
        "Few of its kernels take float16: weights become float32 in memory, nodes run as their parts, casts between.",
        "Ship float32 or 4-bit weights for the processor, and float16 for a GPU.",
        half_on_cpu,
    ),
    Rule(
        "TC402",
        ERROR,
        "bfloat16 on the processor",
        "The model does not load: NOT_IMPLEMENTED.",
        "Export in float32, or in float16 after a check for overflow.",
        bfloat16_on_cpu,
    ),
    Rule(
        "TC403",
        WARNING,
        "float64 arithmetic",
        "Slow everywhere, and without kernels on most devices.",
        "Make the constant float32 in the model (a NumPy number or a Python float became float64).",
        double_leak,
    ),
    Rule(
        "TC404",
        ERROR,
        "One node with inputs of different dtypes",
        "The model does not load, although onnx.checker may pass it.",
        "Cast the model to its precision before the trace, not the finished graph; keep rotary tables whole.",
        mixed_dtypes,
    ),
    Rule(
        "TC405",
        ERROR,
        "A dtype that the operator does not allow",
        "The model does not load: INVALID_GRAPH.",
        "Cast the input, or export at an opset where the operator takes the dtype.",
        not_allowed,
    ),
    Rule(
        "TC406",
        WARNING,
        "A constant that float16 cannot hold",
        "It becomes infinity: masks turn into NaN where a whole row is masked.",
        "Use a constant within ±65504, or keep this part in float32.",
        overflows_half,
    ),
)
