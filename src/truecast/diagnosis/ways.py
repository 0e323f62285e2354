"""What would give a node a kernel, by the runtime's schemas and the provider's kernel table, or that nothing would.

A fix is named only where the tables say that it helps: an older version of the operator that has a kernel, at an opset
that has all of the model's operators, or other dtypes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import onnx_ir as ir

from truecast.diagnosis.evidence import Evidence
from truecast.diagnosis.kernels import Kernels
from truecast.diagnosis.placement import refused_attribute
from truecast.diagnosis.schemas import Schema, find_schema, standard, versions_of

INTEGER_PRODUCTS = (
    "ConvInteger",
    "DynamicQuantizeLinear",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
)
WEIGHTS_ONLY = "Quantize the weights only (MatMulNBits) or use QDQ: dynamic int8 has kernels on the processor alone."
FLOAT_BIAS = "Leave biases in float (extra_options={'QuantizeBias': False}): the provider dequantizes no int32."
REWRITE = "write it in other operators"
SHOWN_WAYS = 3


def ways(nodes: Sequence[ir.Node], evidence: Evidence, tables: Sequence[Kernels]) -> str:
    """A sentence for each kind of node: what brings it to the first provider of some tables that can have it."""
    kinds = {(node.domain, node.op_type): node for node in reversed(nodes)}
    found = dict.fromkeys(_way(node, evidence, tables) for node in reversed(kinds.values()))
    return " ".join([*found][:SHOWN_WAYS])


def _way(node: ir.Node, evidence: Evidence, tables: Sequence[Kernels]) -> str:
    schema, name = evidence.schema(node), node.op_type
    if name in INTEGER_PRODUCTS:
        return WEIGHTS_ONLY
    if name == "DequantizeLinear" and _reads(node, evidence) is ir.DataType.INT32:
        return FLOAT_BIAS
    if schema is None:
        return f"For {name}, {REWRITE}."
    known = [table for table in tables if table.knows(schema)]
    if known and (refused := refused_attribute(node)) is not None:
        return f"The provider has {name}, and not with {refused[0]}={refused[1]}: {REWRITE}."
    if known:
        names = ", ".join(sorted(name.removeprefix("tensor(").rstrip(")") for name in known[0].dtypes(schema)))
        return f"There is a kernel of {name} for other dtypes ({names}): cast around it, or {REWRITE}."
    older = _older(schema, tables)
    if older is not None and _has_all(evidence, older):
        return f"Export at opset {older} or lower, whose {name} has a kernel, or {REWRITE}."
    return f"No version of {name} has a kernel there{' at an opset for this model' if older else ''}: {REWRITE}."


def _reads(node: ir.Node, evidence: Evidence) -> ir.DataType | None:
    value = node.inputs[0] if node.inputs else None
    return None if value is None else evidence.types.get(value)


def _older(schema: Schema, tables: Sequence[Kernels]) -> int | None:
    """The newest opset with a version of an operator that some table has, older than the one given."""
    pairs = pairwise(versions_of(schema.domain, schema.name))
    found = [
        newer.since - 1
        for older, newer in pairs
        if newer.since <= schema.since and any(table.knows(older) for table in tables)
    ]
    return max(found, default=None)


def _has_all(evidence: Evidence, opset: int) -> bool:
    """Whether an opset of ONNX has every operator of the model."""
    opsets = {**evidence.opsets, "": opset}
    return all(find_schema(node, opsets) is not None for node in evidence.nodes if not standard(node.domain))


def way_to_know(nodes: Sequence[ir.Node], evidence: Evidence) -> str:
    """What to do about operators that the runtime does not know at the file's opsets."""
    return " ".join(dict.fromkeys(_way_to_know(node, evidence) for node in nodes))


def _way_to_know(node: ir.Node, evidence: Evidence) -> str:
    domain, name = standard(node.domain), node.op_type
    opset = evidence.opsets.get(domain, 1)
    versions = [version for version in versions_of(domain, name) if not version.deprecated]
    later = min((version.since for version in versions if version.since > opset), default=None)
    if later is not None:
        return f"{name} is from opset {later}: stamp that where the rest is from it too, or export again at {later}."
    gone = min((v.since for v in versions_of(domain, name) if v.deprecated), default=None)
    if versions and gone is not None:
        return f"{name} is gone since opset {gone}: export again at this opset, or stamp {gone - 1}."
    return f"ONNX Runtime has no {name} in {domain or 'ai.onnx'} at any opset: export without it."


def way_to_allow(node: ir.Node, names: Iterable[str], evidence: Evidence, newest: int) -> str:
    """What to do about dtypes, "tensor(float)", that an operator does not allow, with the newest opset that loads."""
    wrong, domain = set(names), standard(node.domain)
    opset = evidence.opsets.get(domain, 1)
    for version in versions_of(domain, node.op_type):
        allowed = frozenset().union(*version.constraints.values())
        if opset < version.since <= newest and wrong <= allowed:
            return f"Cast the input of {node.op_type}, or export at opset {version.since}, where it takes the dtype."
    return f"Cast the input of {node.op_type}: no version of it takes the dtype."
