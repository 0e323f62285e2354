"""TC407: what the file declares of its values' types, against what its operators make of them.

ONNX Runtime makes every type anew from the operators and refuses a file that declares another
(`InferAndVerifyTypeMatch` in onnxruntime/core/graph/graph.cc); declared shapes of results it only warns about.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from truecast.diagnosis.evidence import Evidence, label
from truecast.diagnosis.inference import (
    KINDS,
    TYPE_NAMES,
    clashing_dtypes,
    declared_dtype,
    forbidden_dtypes,
    may_be_as_declared,
    node_types,
)
from truecast.diagnosis.model import Seen, seen
from truecast.diagnosis.rules.rule import ERROR, Rule
from truecast.diagnosis.schemas import Schema

OF_TYPES = "[TypeInferenceError]"
"""How inference begins a complaint about types, not shapes."""
CONTRADICTION = re.compile(r"differs from existing|ismatch|does not match existing")
"""In its complaints of two types that exclude each other; others are of types that are not known."""
NUMBERS = re.compile(r"\((\d+)\) vs \((\d+)\)")


def wrongly_declared(evidence: Evidence) -> Seen | None:
    """A declared type that is not what the graph makes, or an input without one."""
    found = [*_inputs(evidence), *_results(evidence)]
    if not found and not any(_takes_wrong_dtypes(node, evidence) for node in evidence.nodes):
        found = [_in_words(complaint) for complaint in type_complaints(evidence)]
    return seen(found)


def type_complaints(evidence: Evidence) -> list[str]:
    """What inference says about types that differ, in branches and loops too."""
    return [said for said in evidence.shapes.refusals if OF_TYPES in said and CONTRADICTION.search(said)]


def _inputs(evidence: Evidence) -> Iterator[str]:
    """Inputs that have no data type, or that are initializers of another type or shape."""
    for value in evidence.graph.inputs:
        stored = value.const_value
        if value.type is None or (isinstance(value.type, ir.TensorType) and declared_dtype(value) is None):
            yield f"{value.name} (an input without a data type)"
        elif stored is not None and stored.dtype is not value.dtype:
            yield f"{value.name} (stored as {_name(stored.dtype)}, declared {_name(value.dtype)})"
        elif stored is not None and value.shape is not None and not _agrees(list(stored.shape.numpy()), value.shape):
            yield f"{value.name} (stored as {list(stored.shape.numpy())}, declared {list(value.shape)})"


def _agrees(stored: Sequence[int], declared: ir.Shape) -> bool:
    pairs = zip(stored, declared, strict=False)
    return len(stored) == len(declared) and all(not isinstance(dim, int) or dim == size for size, dim in pairs)


def _results(evidence: Evidence) -> Iterator[str]:
    """Results of nodes that are declared as something that the operator does not make of these inputs."""
    for node in evidence.nodes:
        schema = evidence.schema(node)
        if schema is None or _takes_wrong_dtypes(node, evidence):
            continue
        for index, value in enumerate(node.outputs):
            fault = None if value.type is None else _fault(value, index, schema, evidence)
            if fault is not None:
                yield f"{value.name} of {label(node)} ({fault})"


def _takes_wrong_dtypes(node: ir.Node, evidence: Evidence) -> bool:
    """Whether what a node reads is the fault already, which other rules name."""
    schema = evidence.schema(node)
    if schema is None:
        return False
    clashes = clashing_dtypes(schema, node_types(node, schema, evidence.types))
    return bool(clashes) or bool(forbidden_dtypes(node, schema, evidence.types))


def _fault(value: ir.Value, index: int, schema: Schema, evidence: Evidence) -> str | None:
    if not may_be_as_declared(value, index, schema):
        return f"declared as {KINDS.get(type(value.type), 'another kind of value')}, which {schema.name} does not make"
    if not isinstance(value.type, ir.TensorType):
        return None
    declared, made = declared_dtype(value), evidence.types.get(value)
    if declared is None:
        return "declared without a data type"
    return f"declared {_name(declared)}, made {_name(made)}" if made is not None and made is not declared else None


def _in_words(complaint: str) -> str:
    """A complaint with the names of data types in place of their numbers."""
    named = complaint.replace(f" {OF_TYPES}", "").replace(OF_TYPES, "").strip()
    return NUMBERS.sub(lambda found: f"{_number(found[1])}, declared {_number(found[2])}", named)


def _number(text: str) -> str:
    known = {int(kind): kind for kind in ir.DataType}
    return _name(known.get(int(text)))


def _name(dtype: ir.DataType | None) -> str:
    return "unknown" if dtype is None else TYPE_NAMES[dtype]


RULES = (
    Rule(
        "TC407",
        ERROR,
        "A declared type that is not what the graph makes",
        "The model does not load: Type Error. Shape inference and quantizers stop there too.",
        "Declare what the operator makes, or take the declaration away: value_info is optional, inputs need a type.",
        wrongly_declared,
    ),
)
