"""Which products of one input are worth one product: queries, keys and values; the two sides of a gate.

Data flow: linear leaves, and how their results come together → groups of leaves → the packer makes one product of each
group whose weights are alike, and splits its result.

Measured for int4 in blocks of 32 at Qwen2.5-0.5B's shape, before and after in turns: the two sides of a gate as one
product take 2 to 5 % less of the processor for a token; for a prompt the same on one thread (copying the halves costs
what one product less gains), and less on two. They need room for the unsplit result while they run.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


def attention_groups(nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """Groups of linear leaves that feed one attention operator from one input, biased alike: worth one product."""
    groups: dict[tuple[ir.Value | None, ir.Node], list[ir.Node]] = {}
    for node in nodes:
        reader = _attention_of(node)
        if reader is not None and not node.attributes["transposed"].as_int():
            groups.setdefault((node.inputs[0], reader), []).append(node)
    return [
        group
        for group in groups.values()
        if len(group) == 3 and len({bool(node.attributes["bias"].as_string()) for node in group}) == 1
    ]


def _attention_of(node: ir.Node) -> ir.Node | None:
    """The attention operator that reads this leaf, directly or through a rotation, a norm or a reshape."""
    value = node.outputs[0]
    while True:
        readers = [use.node for use in value.uses()]
        if len(readers) != 1:
            return None
        reader = readers[0]
        if reader.op_type == "GroupQueryAttention":
            return reader
        if reader.op_type not in PER_HEAD:
            return None
        value = reader.outputs[0]


PER_HEAD = frozenset({"Rotary", "RotaryEmbedding", "SimplifiedLayerNormalization", "LayerNormalization", "Reshape"})
"""Operators between a projection and attention that leave the heads where they are."""


def gates(graph: ir.Graph) -> list[list[ir.Node]]:
    """Pairs of linear leaves of one input, biased alike, whose results are multiplied; no leaf is in two of them."""
    pairs: list[list[ir.Node]] = []
    place = {node: index for index, node in enumerate(graph)}
    behind: dict[ir.Value, ir.Node | None] = {}  # the one leaf that a value is made of, with constants; None for more
    for node in place:
        leaves = dict.fromkeys(behind[value] for value in node.inputs if value in behind)
        pair = sorted((leaf for leaf in leaves if leaf is not None), key=place.__getitem__)
        if node.op_type == "Mul" and len(pair) == 2 and _joinable(*pair) and not any({*pair} & {*p} for p in pairs):
            pairs.append(pair)
        leaf = node if node.op_type == "Linear" else pair[0] if len(leaves) == len(pair) == 1 else None
        if leaves or leaf is not None:
            behind |= dict.fromkeys(node.outputs, leaf)
    return pairs


def _joinable(left: ir.Node, right: ir.Node) -> bool:
    biased = {bool(node.attributes["bias"].as_string()) for node in (left, right)}
    turned = any(node.attributes["transposed"].as_int() for node in (left, right))
    return left.inputs[0] is right.inputs[0] and len(biased) == 1 and not turned
