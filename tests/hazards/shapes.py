"""TC3xx: axes that are dynamic in name only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto

from tests.hazards.building import WIDTH, Hazard, chain, constant, layer, model, node, rows, save, tensor, weight

PARTS = 4


def static(folder: Path, hazard: bool) -> Path:
    first = 3 if hazard else "batch"
    made = model([layer()], [tensor("x", [first, WIDTH])], [tensor("y", [first, WIDTH])], [weight("w", WIDTH, WIDTH)])
    return save(made, folder)


def fixed_output(folder: Path, hazard: bool) -> Path:
    """The rows of the trace come back whatever goes in."""
    table = weight("table", 6, WIDTH)
    nodes = [
        layer("x", "m"),
        node("Slice", ["m", "zero", "none", "zero"], ["empty"]),
        node("Concat", ["empty", "table"], ["y"], axis=0),
    ]
    constants = [constant("zero", [0], np.int64), constant("none", [0], np.int64)]
    if not hazard:
        nodes = [layer()]
    weights = [weight("w", WIDTH, WIDTH), *([table, *constants] if hazard else [])]
    return save(model(nodes, [rows()], [tensor("y", [6, WIDTH]) if hazard else rows("y")], weights), folder)


def added_literal(folder: Path, hazard: bool) -> Path:
    """zeros(4, 64) + x, as a trace at batch 4 writes it."""
    return save(chain([node("Add", ["x", "zeros"], ["n"])], "n", [weight("zeros", 4 if hazard else 1, WIDTH)]), folder)


def literal_reshape(folder: Path, hazard: bool) -> Path:
    sizes = constant("sizes", [3, PARTS, WIDTH // PARTS] if hazard else [0, PARTS, WIDTH // PARTS], np.int64)
    first = 3 if hazard else "batch"
    made = model(
        [layer("x", "m"), node("Reshape", ["m", "sizes"], ["r"]), node("ReduceSum", ["r", "axes"], ["y"], keepdims=0)],
        [rows()],
        [tensor("y", ["batch", PARTS])],
        [weight("w", WIDTH, WIDTH), sizes, constant("axes", [2], np.int64)],
    )
    del first
    return save(made, folder)


def rows_from_reshape(folder: Path, hazard: bool) -> Path:
    """A literal number of rows, the rest left to -1: the elements of other batches are mixed."""
    sizes = constant("sizes", [3, -1, WIDTH] if hazard else [0, -1, WIDTH], np.int64)
    made = model(
        [node("Reshape", ["x", "sizes"], ["r"]), layer("r")],
        [tensor("x", ["batch", "length", WIDTH])],
        [tensor("y", ["rows", "middle", WIDTH])],
        [weight("w", WIDTH, WIDTH), sizes],
    )
    return save(made, folder)


def contradiction(folder: Path, hazard: bool) -> Path:
    made = chain([node("Relu", ["x"], ["n"])], "n")
    made.graph.value_info.append(tensor("n", ["batch", WIDTH + int(hazard)]))
    return save(made, folder)


def squeezed_batch(folder: Path, hazard: bool) -> Path:
    """Free on paper; a Squeeze of the first axis runs for one row only, and the trial sizes show it."""
    nodes = [node("Squeeze", ["x", "axis"], ["s"]), layer("s")] if hazard else [layer()]
    weights = [weight("w", WIDTH, WIDTH), *([constant("axis", [1], np.int64)] if hazard else [])]
    dims = ["batch", "length", WIDTH]
    made = model(nodes, [tensor("x", dims)], [tensor("y", ["rows", WIDTH] if hazard else dims)], weights)
    return save(made, folder)


def misdeclared(folder: Path, hazard: bool) -> Path:
    made = model(
        [node("NonZero", ["x"], ["y"])], [rows()], [tensor("y", [2, 3 if hazard else "found"], TensorProto.INT64)]
    )
    return save(made, folder)


HAZARDS = (
    Hazard("TC301", "static", static),
    Hazard("TC302", "fixed-output", fixed_output),
    Hazard("TC303", "added-literal", added_literal),
    Hazard("TC303", "literal-reshape", literal_reshape),
    Hazard("TC304", "rows", rows_from_reshape),
    Hazard("TC305", "contradiction", contradiction),
    Hazard("TC307", "misdeclared", misdeclared, run=True),
)
