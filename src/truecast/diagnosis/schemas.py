"""The operators that the installed ONNX Runtime knows, version by version, and which of them are made of others.

The onnx package may publish a newer schema under the same opset than the runtime knows, so the runtime's own list
decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir
from onnxruntime.capi import onnxruntime_pybind11_state as state

STANDARD = ("", "ai.onnx")
VARIADIC = "Variadic"


@dataclass(frozen=True)
class Parameter:
    """A formal input or output: its name and its type, either a constraint such as "T" or "tensor(int64)"."""

    name: str
    type_name: str
    variadic: bool
    homogeneous: bool


@dataclass(frozen=True)
class Schema:
    """One version of an operator.

    `constraints` maps a constraint to the dtypes that it allows, `attributes` an attribute to the number of its type in
    onnx.proto.
    """

    domain: str
    name: str
    since: int
    inputs: tuple[Parameter, ...]
    outputs: tuple[Parameter, ...]
    constraints: Mapping[str, frozenset[str]]
    attributes: Mapping[str, int]
    most_inputs: int
    least_inputs: int
    deprecated: bool = False

    def input(self, index: int) -> Parameter | None:
        """The formal parameter of an input, counting on through a variadic last one."""
        return _parameter(self.inputs, index)

    def output(self, index: int) -> Parameter | None:
        """The formal parameter of an output."""
        return _parameter(self.outputs, index)


def _parameter(parameters: tuple[Parameter, ...], index: int) -> Parameter | None:
    if index < len(parameters):
        return parameters[index]
    return parameters[-1] if parameters and parameters[-1].variadic else None


def standard(domain: str) -> str:
    """The domain with its empty name for ONNX's own operators."""
    return "" if domain in STANDARD else domain


@cache
def runtime_schemas() -> Mapping[tuple[str, str], tuple[Schema, ...]]:
    """Every schema of the installed ONNX Runtime by domain and name, oldest first."""
    known: dict[tuple[str, str], list[Schema]] = {}
    for raw in state.get_all_operator_schema():
        known.setdefault((standard(raw.domain), raw.name), []).append(_schema(raw))
    return {key: tuple(sorted(found, key=lambda schema: schema.since)) for key, found in known.items()}


def _schema(raw: Any) -> Schema:
    return Schema(
        domain=standard(raw.domain),
        name=raw.name,
        since=raw.since_version,
        inputs=tuple(_formal(parameter) for parameter in raw.inputs),
        outputs=tuple(_formal(parameter) for parameter in raw.outputs),
        constraints={c.type_param_str: frozenset(c.allowed_type_strs) for c in raw.type_constraints},
        attributes={name: int(attribute.type) for name, attribute in raw.attributes.items()},
        most_inputs=raw.max_input,
        least_inputs=raw.min_input,
        deprecated=raw.deprecated,
    )


def _formal(raw: Any) -> Parameter:
    return Parameter(raw.name, raw.typeStr, str(raw.option).endswith(VARIADIC), raw.isHomogeneous)


def find_schema(node: ir.Node, opsets: Mapping[str, int]) -> Schema | None:
    """The schema that a node means under the model's opsets; None when the runtime has none, or none any more."""
    domain = standard(node.domain)
    opset = opsets.get(domain, 1)
    found = next((s for s in reversed(versions_of(domain, node.op_type)) if s.since <= opset), None)
    return None if found is None or found.deprecated else found


def versions_of(domain: str, name: str) -> tuple[Schema, ...]:
    """Every version of an operator that the runtime knows, oldest first."""
    return runtime_schemas().get((domain, name), ())


EXPANDED_CONTRIB = frozenset({"BiasGelu", "FastGelu", "Gelu", "QuickGelu", "BiasDropout", "FusedMatMul"})
"""Operators of com.microsoft that ONNX Runtime can replace by standard ones."""


@cache
def is_function(domain: str, name: str, since: int) -> bool:
    """Whether ONNX Runtime can run the operator as its parts where no kernel takes it."""
    if domain == "com.microsoft":
        return name in EXPANDED_CONTRIB
    try:
        schema: Any = onnx.defs.get_schema(name, since, domain)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)
