"""Outputs whose weights a checkpoint does not have: a pooler that nobody trained, a head of another task."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

WEIGHT_NAMES = ("weight", "bias")
"""Attributes by which abstract operators name their parameters."""


def drop_outputs(model: ir.Model, is_there: Callable[[str], bool]) -> list[str]:
    """Drops the outputs that need a missing weight, as long as one is left; says so in a sentence for each.

    Where none would be left, all stay: binding then names the weight that is missing.
    """
    graph = model.graph
    missing = {value: next(_missing(value, is_there), None) for value in graph.outputs}
    if all(name is not None for name in missing.values()):
        return []
    graph.outputs[:] = [value for value in graph.outputs if missing[value] is None]
    RemoveUnusedNodesPass()(model)
    return [
        f"The output {value.name} is left out: the checkpoint has no {name}."
        for value, name in missing.items()
        if name is not None
    ]


def _missing(output: ir.Value, is_there: Callable[[str], bool]) -> Iterator[str]:
    """Parameters that an output needs and the checkpoint lacks."""
    seen: set[ir.Node] = set()
    rest: list[ir.Value | None] = [output]
    while rest:
        value = rest.pop()
        node = value.producer() if value is not None else None
        empty = value is not None and value.is_initializer() and value.const_value is None
        if empty and value is not None and value.name and not is_there(value.name):
            yield value.name
        if node is None or node in seen:
            continue
        seen.add(node)
        rest += node.inputs
        names = (node.attributes[key].as_string() for key in WEIGHT_NAMES if _is_name(node, key))
        yield from (name for name in names if name and not is_there(name))


def _is_name(node: ir.Node, key: str) -> bool:
    return key in node.attributes and node.attributes[key].type == ir.AttributeType.STRING
