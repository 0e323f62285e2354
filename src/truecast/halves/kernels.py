"""Nodes of 16 bits that an operator's definition or a provider's kernels leave out, by the tables of its build."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from truecast.diagnosis.inference import Types, forbidden_dtypes, node_types, type_name
from truecast.diagnosis.kernels import Kernels, tables_for
from truecast.diagnosis.placement import RENAMED
from truecast.diagnosis.schemas import Schema, find_schema, standard
from truecast.halves.model import Half
from truecast.halves.nodes import all_nodes, dtypes

ELSEWHERE = RENAMED | {"Constant"}
"""Operators that no provider needs a kernel for: ONNX Runtime makes others, or initializers, of them."""


def without_kernel(model: ir.Model, half: Half) -> dict[str, str]:
    """The nodes that read or give `half` and have no kernel for it on its first provider: name → why."""
    nodes = all_nodes(model)
    types = dtypes(model, nodes)
    opsets = {standard(domain): version for domain, version in model.opset_imports.items()}
    table = table_of(half)
    found = {}
    for node in nodes:
        if node.op_type in ELSEWHERE or not any(types.get(value) is half.dtype for value in _ends(node)):
            continue
        schema = find_schema(node, opsets)
        reason = f"{node.op_type} is not known" if schema is None else _reason(node, schema, types, table, half)
        if reason is not None:
            found[node.name or ""] = reason
    return found


def table_of(half: Half) -> Kernels:
    """The kernels of the first provider that has any for `half`."""
    return tables_for(half.providers[0])[0]


def _ends(node: ir.Node) -> Iterator[ir.Value]:
    yield from (value for value in (*node.inputs, *node.outputs) if value is not None)


def _reason(node: ir.Node, schema: Schema, types: Types, table: Kernels, half: Half) -> str | None:
    what = f"{node.op_type}-{schema.since}"
    if type_name(half.dtype) in (forbidden_dtypes(node, schema, types) | set(_not_given(node, schema, types))):
        return f"{what} does not take {half.word}"
    if not table.has(schema, node_types(node, schema, types)):
        return f"{half.providers[0]} has no {half.word} kernel of {what}"
    return None


def _not_given(node: ir.Node, schema: Schema, types: Types) -> Iterator[str]:
    """Dtypes of outputs that the operator's definition does not allow."""
    for index, value in enumerate(node.outputs):
        formal = schema.output(index)
        allowed = schema.constraints.get(formal.type_name) if formal is not None else None
        if value in types and allowed and type_name(types[value]) not in allowed:
            yield type_name(types[value])
