"""Names and order that are the same in every process, and that a reader of the graph can place.

A value that a module of the author's gives carries the module's name (`model.layers.3.self_attn.q_proj`); what lies in
between carries its layer and operator (`model.layers.3/Add_1`). Nodes are sorted by walking back from the outputs, so
the order does not depend on how a trace happened to visit them.
"""

from __future__ import annotations

import re
from collections import Counter

import onnx_ir as ir

NORMS = ("SimplifiedLayerNormalization", "LayerNormalization")
OWN_NAMES = frozenset({"attention_bias", "last_position", "total_length", "token_rows"})
_LAYER = re.compile(r"^(.*?\.\d+)[./]")


def canonical(model: ir.Model) -> None:
    """Sorts and names the nodes and values of a finished graph."""
    graph = model.graph
    _sort(graph)
    ends = {*graph.inputs, *graph.outputs, *graph.initializers.values()}
    scopes: dict[ir.Value, str] = {}
    counts: Counter[str] = Counter()
    taken = {value.name for value in ends}
    for node in graph:
        scope = _scope(node, scopes)
        for index, value in enumerate(node.outputs):
            if value not in ends:
                value.name = _name(node, index, value, scope, counts, taken)
                taken.add(value.name)
            own = _LAYER.match(f"{value.name}.")
            scopes[value] = own.group(1) if own and value not in ends else scope
        node.name = node.outputs[0].name


def _sort(graph: ir.Graph) -> None:
    """Depth first from the outputs: the order of a node depends only on who uses it."""
    order: list[ir.Node] = []
    seen: set[ir.Node] = set()
    for output in graph.outputs:
        stack = [(producer, False) for producer in [output.producer()] if producer is not None]
        while stack:
            node, ready = stack.pop()
            if ready:
                order.append(node)
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                producers = [value.producer() for value in reversed(node.inputs) if value is not None]
                stack.extend((p, False) for p in producers if p is not None and p not in seen)
    graph.remove([node for node in graph if node not in seen])
    for node in order:
        graph.remove(node)
        graph.append(node)


def _scope(node: ir.Node, scopes: dict[ir.Value, str]) -> str:
    """The latest layer among those that feed the node, or the empty string."""
    found = [scopes.get(value, "") for value in node.inputs if value is not None]
    weights = [value.name or "" for value in node.inputs if value is not None and value.is_initializer()]
    found += [own.group(1) for name in weights if (own := _LAYER.match(name))]
    return max(found, key=_depth, default="")


def _depth(scope: str) -> int:
    return int(scope.rpartition(".")[2]) if scope else -1


def _name(node: ir.Node, index: int, value: ir.Value, scope: str, counts: Counter[str], taken: set[str | None]) -> str:
    given = value.name or ""
    if ("." in given and given not in taken) or given in OWN_NAMES:
        return given
    scale = node.inputs[1] if node.op_type in NORMS and len(node.inputs) > 1 else None
    module = (scale.name or "").removesuffix(".weight") if scale is not None and scale.is_initializer() else ""
    if "." in module and module not in taken and index == 0:
        return module
    stem = f"{scope}/{node.op_type}" if scope else node.op_type
    counts[stem] += 1
    while f"{stem}_{counts[stem]}" in taken:  # an initializer may have the name already
        counts[stem] += 1
    return f"{stem}_{counts[stem]}"
