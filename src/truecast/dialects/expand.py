"""Small helpers to put operators into a graph by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

CONTRIB = "com.microsoft"


class NodeWriter:
    """Writes nodes in front of one node of a graph; `op` returns the first output."""

    def __init__(self, before: ir.Node) -> None:
        assert before.graph is not None
        self.graph, self.before = before.graph, before

    def op(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
        name: str | None = None,
    ) -> ir.Value:
        """One node with one output."""
        return self.ops(kind, inputs, [name], attributes, domain=domain)[0]

    def ops(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[str | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """One node with outputs of the given names."""
        results = [ir.Value(name=name) for name in outputs]
        node = ir.node(kind, inputs, attributes or {}, domain=domain, outputs=results)
        self.graph.insert_before(self.before, node)
        return node.outputs

    def ints(self, *values: int) -> ir.Value:
        """A constant int64 vector."""
        return self.op("Constant", [], {"value": ir.tensor(np.array(values, np.int64))})

    def scalar(self, value: float, dtype: ir.DataType) -> ir.Value:
        """A constant scalar of `dtype`."""
        return self.op("Constant", [], {"value": ir.tensor(np.array(value, dtype.numpy()))})


def finish(node: ir.Node, result: ir.Value) -> None:
    """Lets `result` stand in for the only output of `node`, and removes the node."""
    output = node.outputs[0]
    result.shape, result.type = output.shape, output.type
    if output.is_graph_output():
        result.name = output.name
    ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
