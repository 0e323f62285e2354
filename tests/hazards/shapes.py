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
    """A Squeeze of the axis of rows runs for one row only; that of an axis of size one is right."""
    dims = ["batch", 1, WIDTH]
    nodes = [node("Squeeze", ["x", "axis"], ["s"]), layer("s")]
    axis = constant("axis", [0 if hazard else 1], np.int64)
    made = model(nodes, [tensor("x", dims)], [tensor("y", ["rows", WIDTH])], [weight("w", WIDTH, WIDTH), axis])
    return save(made, folder)


def divided_batch(folder: Path, hazard: bool) -> Path:
    """x.split([2, 1]) over the rows of the trace, or over its features."""
    sizes = [2, 1] if hazard else [WIDTH // 2, WIDTH // 2]
    nodes = [layer("x", "m"), node("Split", ["m", "sizes"], ["y", "z"], axis=0 if hazard else 1)]
    outputs = [tensor("y", ["some", "wide"]), tensor("z", ["others", "slim"])]
    return save(
        model(nodes, [rows()], outputs, [weight("w", WIDTH, WIDTH), constant("sizes", sizes, np.int64)]), folder
    )


def one_row(folder: Path, hazard: bool) -> Path:
    """int(x.shape[0]) in a trace at batch 1; the twin goes back to the input's rows, as grouped convolutions do."""
    nodes = [node("Reshape", ["x", "sizes"], ["r"]), layer("r", "y" if hazard else "m")]
    if not hazard:
        nodes += [node("Shape", ["x"], ["shape"]), node("Reshape", ["m", "shape"], ["y"])]
    made = model(
        nodes,
        [tensor("x", ["batch", "length", WIDTH])],
        [tensor("y", ["batch", "length", WIDTH])],
        [weight("w", WIDTH, WIDTH), constant("sizes", [1, -1, WIDTH], np.int64)],
    )
    return save(made, folder)


def first_of_the_batch(folder: Path, hazard: bool) -> Path:
    """The rows of a loop over range(x.shape[0]) that was traced at batch 1; the file still declares all of them."""
    taken = [node("Gather", ["m", "first"], ["r"], axis=0), node("Unsqueeze", ["r", "axis"], ["y"])]
    numbers = [constant("first", 0, np.int64), constant("axis", [0], np.int64)]
    nodes = [layer("x", "m"), *taken] if hazard else [layer()]
    return save(model(nodes, [rows()], [rows("y")], [weight("w", WIDTH, WIDTH), *(numbers if hazard else [])]), folder)


def first_of_a_named_batch(folder: Path, hazard: bool) -> Path:
    """The last step of a recording is a fair output; the first row of a batch is not."""
    taken = [node("Gather", ["m", "first"], ["r"], axis=0), node("Unsqueeze", ["r", "axis"], ["y"])]
    numbers = [constant("first", 0, np.int64), constant("axis", [0], np.int64)]
    ends = [tensor("x", ["batch" if hazard else "time", WIDTH])], [tensor("y", [1, WIDTH])]
    return save(model([layer("x", "m"), *taken], *ends, [weight("w", WIDTH, WIDTH), *numbers]), folder)


def joined_literal(folder: Path, hazard: bool) -> Path:
    """A class token for the rows of the trace; the twin repeats it for the rows of the input."""
    nodes = [
        node("Shape", ["x"], ["batch"], start=0, end=1),
        node("Concat", ["batch", "rest"], ["sizes"], axis=0),
        node("Expand", ["token", "sizes"], ["tokens"]),
    ]
    join = node("Concat", ["token" if hazard else "tokens", "x"], ["n"], axis=1)
    made = model(
        [*([] if hazard else nodes), join, layer("n")],
        [tensor("x", ["batch", "length", WIDTH])],
        [tensor("y", ["batch", "longer", WIDTH])],
        [weight("w", WIDTH, WIDTH), weight("token", 1, 1, WIDTH), constant("rest", [1, WIDTH], np.int64)],
    )
    return save(made, folder)


def first_state(folder: Path, hazard: bool) -> Path:
    """An LSTM whose zeros have one row, as torch's exporter wrote them at batch 1."""
    zeros = constant("zeros", np.zeros((1, 1, WIDTH)))
    weights = [weight("kernel", 1, 4 * WIDTH, WIDTH), weight("recurrence", 1, 4 * WIDTH, WIDTH), zeros]
    states = ["", "", "zeros", "zeros"] if hazard else []
    recurrent = node("LSTM", ["x", "kernel", "recurrence", *states], ["h"], hidden_size=WIDTH)
    made = model(
        [recurrent, node("Squeeze", ["h", "axis"], ["y"])],
        [tensor("x", ["time", "batch", WIDTH])],
        [tensor("y", ["time", "batch", WIDTH])],
        [*(weights if hazard else weights[:2]), constant("axis", [1], np.int64)],
    )
    return save(made, folder)


def misdeclared(folder: Path, hazard: bool) -> Path:
    made = model(
        [node("NonZero", ["x"], ["y"])], [rows()], [tensor("y", [2, 3 if hazard else "found"], TensorProto.INT64)]
    )
    return save(made, folder)


def end_to_end(folder: Path, hazard: bool) -> Path:
    """Sizes that the file computes from constants, as a trace with a shape in Python writes them: seen in a run."""
    size = node("Shape", ["x"], ["rows"], start=0, end=1) if not hazard else node("Add", ["zero", "one"], ["rows"])
    nodes = [size, node("Concat", ["rows", "rest"], ["sizes"], axis=0), node("Reshape", ["x", "sizes"], ["r"])]
    made = model(
        [*nodes, layer("r")],
        [tensor("x", ["batch", "length", WIDTH])],
        [tensor("y", ["texts", "longer", WIDTH])],
        [
            weight("w", WIDTH, WIDTH),
            constant("rest", [-1, WIDTH], np.int64),
            constant("zero", [0], np.int64),
            constant("one", [1], np.int64),
        ],
    )
    return save(made, folder)


def renamed_axis(folder: Path, hazard: bool) -> Path:
    """An output whose second axis has the name of the input's and twice its size."""
    made = model(
        [layer("x", "m"), node("Concat", ["m", "m"], ["y"], axis=1)] if hazard else [layer()],
        [tensor("x", ["batch", "length", WIDTH])],
        [tensor("y", ["batch", "length", WIDTH])],
        [weight("w", WIDTH, WIDTH)],
    )
    return save(made, folder)


def changing_rank(folder: Path, hazard: bool) -> Path:
    """x.squeeze() without an axis: one row loses its axis."""
    inputs = ["m"] if hazard else ["m", "axis"]
    nodes = [layer("x", "m"), node("Squeeze", inputs, ["y"])]
    made = model(
        nodes,
        [tensor("x", ["batch", 1, WIDTH])],
        [tensor("y", None)],
        [weight("w", WIDTH, WIDTH), *([] if hazard else [constant("axis", [1], np.int64)])],
    )
    return save(made, folder)


def described_weight(folder: Path, hazard: bool) -> Path:
    """A Linear of the dynamo exporter: value_info describes its weight, which the quantizer transposes."""
    nodes = [node("Gemm", ["x", "w"], ["y"], transB=1)]
    made = model(nodes, [rows()], [tensor("y", ["batch", 2 * WIDTH])], [weight("w", 2 * WIDTH, WIDTH)])
    made.graph.value_info.extend([tensor("w", [2 * WIDTH, WIDTH])] if hazard else [])
    return save(made, folder)


HAZARDS = (
    Hazard("TC301", "static", static),
    Hazard("TC302", "fixed-output", fixed_output),
    Hazard("TC302", "first-of-the-batch", first_of_the_batch),
    Hazard("TC302", "first-of-a-named-batch", first_of_a_named_batch),
    Hazard("TC303", "added-literal", added_literal, besides=("TC302",)),
    Hazard("TC303", "joined-literal", joined_literal, besides=("TC302", "TC305", "TC309")),
    Hazard("TC303", "first-state", first_state, besides=("TC302", "TC305")),
    Hazard("TC303", "squeezed-batch", squeezed_batch),
    Hazard("TC303", "divided-batch", divided_batch),
    Hazard("TC303", "literal-reshape", literal_reshape, besides=("TC302",)),
    Hazard("TC304", "rows", rows_from_reshape),
    Hazard("TC304", "one-row", one_row, besides=("TC302",)),
    Hazard("TC305", "contradiction", contradiction),
    Hazard("TC307", "misdeclared", misdeclared, run=True),
    Hazard("TC307", "renamed-axis", renamed_axis, run=True),
    Hazard("TC307", "changing-rank", changing_rank, run=True, besides=("TC303",)),
    Hazard("TC308", "end-to-end", end_to_end, run=True),
    Hazard("TC309", "described-weight", described_weight),
)
