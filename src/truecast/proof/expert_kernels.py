"""The kernels of experts: every QMoE of a graph alone, as it is shipped, against NumPy on the file's own codes.

ONNX Runtime's QMoE rounds what its products take to int8 wherever the weights have 8 bits, and at accuracy level 4.
NumPy does the same here: 127 steps for the largest of each block. So the kernel is held to the specification with its
rounding, and the grid (`parity`) to the author's model without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from truecast.artifact import Check
from truecast.proof.experts import CODE_PLACES, coded_table, input_of, rounds
from truecast.proof.held import array_of, load_graph
from truecast.proof.operators import Array, Expert, mixture, shares
from truecast.proof.sessions import RUN_ERRORS, session_as_written
from truecast.proof.table import Stack
from truecast.proof.tally import Worst, broken, check

TIER, NAME = "parity", "kernels of the experts"
ROWS = (1, 2, 17)
"""Rows that a kernel is given, as for other products."""
FLOAT_RELATIVE = 1e-5
"""Limit in parts of a row's largest result for float activations: ten times what float32 sums of this length leave."""
INT8_RELATIVE = 2e-3
"""The same for int8 activations. The input of the second product is computed; where it lies in the middle of two codes,
the last bit of a sum decides, and one code is 1/127 of its block's largest input: that far off either is right. What is
left was 4e-4 of the result at most on 32 experts of [1024, 512]. The rounding itself, which a wrong kernel would have
differently, is 5e-3 to 2e-2."""
SEED = 20_250_117
SPREAD = 2.0
"""Standard deviation of the logits: chosen experts weigh differently, and none is chosen by a hair."""


@dataclass(frozen=True)
class _Alone:
    """One node, and what it is given."""

    node: ir.Node
    width: int
    experts: int


def expert_checks(folder: Path, file: str) -> list[Check]:
    """Every kernel of QMoE, in one check if there are any."""
    model = load_graph(folder, file)
    found = [node for node in model.graph if node.op_type == "QMoE"]
    return [_check(folder, model, found)] if found else []


def _check(folder: Path, model: ir.Model, nodes: list[ir.Node]) -> Check:
    alone = [_alone(node) for node in nodes]
    worst = Worst()
    try:
        given, results = _run(folder, model, alone)
    except RUN_ERRORS as problem:
        return broken(TIER, NAME, str(problem).strip().splitlines()[0])
    for one, result in zip(alone, results, strict=True):
        limit = INT8_RELATIVE if rounds(one.node) else FLOAT_RELATIVE
        errors = _errors(model, one, given, result)
        worst.add(float(errors.max()), limit, f"{one.node.name}, row {int(errors.argmax())}")
    detail = f"worst at {worst.where}; {len(nodes)} nodes, {', '.join(map(str, ROWS))} rows"
    return check(TIER, NAME, worst.value, worst.limit, "of the largest result", detail)


def _alone(node: ir.Node) -> _Alone:
    codes = node.inputs[CODE_PLACES[1][0]]
    assert codes is not None and codes.const_value is not None
    experts, width, _ = codes.const_value.shape.numpy()
    return _Alone(node, int(width), int(experts))


def _run(folder: Path, model: ir.Model, alone: list[_Alone]) -> tuple[Mapping[str, Array], list[Array]]:
    """The inputs by name and every node's results, the rows of each run in order."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    numbers = np.random.default_rng(SEED)
    given: dict[str, Array] = {}
    inputs: dict[str, ir.Value] = {}
    for one in alone:
        for place, name, size, scale in ((0, f"x{one.width}", one.width, 1.0), (1, *_logits(one))):
            if name not in inputs:
                inputs[name] = ir.Value(name=name, shape=ir.Shape([None, size]), type=kind)
                given[name] = scale * numbers.standard_normal((sum(ROWS), size), np.float32)
            one.node.replace_input_with(place, inputs[name])
        one.node.outputs[0].shape, one.node.outputs[0].type = ir.Shape([None, one.width]), kind
    model.graph.inputs[:] = list(inputs.values())
    model.graph.outputs[:] = [one.node.outputs[0] for one in alone]
    RemoveUnusedNodesPass()(model)
    session = session_as_written(model, folder)
    ends = np.cumsum(ROWS)
    runs = [
        session.run(None, {name: array[stop - rows : stop] for name, array in given.items()})
        for rows, stop in zip(ROWS, ends, strict=True)
    ]
    return given, [np.concatenate(parts) for parts in zip(*runs, strict=True)]


def _logits(one: _Alone) -> tuple[str, int, float]:
    return f"logits{one.experts}", one.experts, SPREAD


def _errors(model: ir.Model, one: _Alone, given: Mapping[str, Array], got: Array) -> Array:
    """The largest error of each row, in parts of the row's largest result."""
    node = one.node
    tables = [coded_table(node, number, Stack(turns=False)) for number in range(2)]
    names = [value.name if (value := input_of(node, places[2])) is not None else None for places in CODE_PLACES]
    biases = [None if name is None else array_of(model, name) for name in names]

    def expert(number: int) -> Expert:
        first, second = (table.read(number, number + 1)[0] for table in tables)
        first_bias, second_bias = (None if bias is None else bias[number] for bias in biases)
        return first, first_bias, second, second_bias

    attributes = {name: a.value for name, a in node.attributes.items()}
    weights = shares(given[f"logits{one.experts}"], attributes["k"], bool(attributes.get("normalize_routing_weights")))
    block = node.attributes["block_size"].as_int() if rounds(node) else 0
    want, leeway = mixture(given[f"x{one.width}"], weights, expert, attributes, block)
    if got.shape != want.shape:
        return np.full(len(want), np.inf)
    largest = np.abs(want).max(1)
    errors: Array = np.maximum(np.abs(got - want) - leeway, 0).max(1) / np.where(largest > 0, largest, 1)
    return np.nan_to_num(errors, nan=np.inf)
