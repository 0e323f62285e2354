"""TC3xx: axes that are dynamic in name only."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from truecast.diagnosis.evidence import Evidence, label
from truecast.diagnosis.inference import Dim
from truecast.diagnosis.model import Seen, seen
from truecast.diagnosis.rules.rule import ERROR, INFO, WARNING, Rule

ELEMENTWISE = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Where",
    "And",
    "Or",
    "Equal",
    "Less",
    "LessOrEqual",
    "Greater",
    "GreaterOrEqual",
    "Min",
    "Max",
)
RESULT_KEEPERS = ("Reshape", "Expand")
FREE, COPY = -1, 0
"""Sizes in a Reshape that are not literals."""


def real_inputs(evidence: Evidence) -> list[ir.Value]:
    """Inputs that a caller must feed."""
    return [value for value in evidence.graph.inputs if value.const_value is None]


def free_symbols(evidence: Evidence) -> set[str]:
    """Names of the axes that inputs leave free."""
    return {
        d.value for v in real_inputs(evidence) if v.shape for d in v.shape if isinstance(d, ir.SymbolicDim) and d.value
    }


def all_fixed(evidence: Evidence) -> Seen | None:
    """No axis of any input is free: the export was asked for no dynamic axis, or lost them."""
    inputs = [v for v in real_inputs(evidence) if v.shape is not None and len(v.shape)]
    fixed = bool(inputs) and all(v.shape is not None and v.shape.is_static() for v in inputs)
    return seen(f"{v.name} {list(v.shape or ())}" for v in inputs) if fixed else None


def output_fixed(evidence: Evidence) -> Seen | None:
    """The first axis of the inputs is free and that of an output is a literal."""
    batch = {name for v in real_inputs(evidence) if (name := _first_symbol(v)) is not None}
    return seen(_fixed_outputs(evidence)) if batch else None


def _first_symbol(value: ir.Value) -> str | None:
    first = value.shape[0] if value.shape is not None and len(value.shape) else None
    return first.value if isinstance(first, ir.SymbolicDim) else None


def _fixed_outputs(evidence: Evidence) -> Iterator[str]:
    for value in evidence.graph.outputs:
        if value.shape is None or not value.shape.is_static() or value in evidence.constants:
            continue
        sizes = list(value.shape.numpy())
        if sizes and sizes[0] > 1 and _carries_batch(value):
            yield f"{value.name} {sizes}"


def _carries_batch(value: ir.Value) -> bool:
    """Whether the last operator keeps its input's rows; a reduction or a Shape makes a fixed result rightly."""
    producer = value.producer()
    return producer is not None and not producer.op_type.startswith(
        ("Reduce", "Shape", "Size", "Gather", "ArgM", "NonZero")
    )


def baked_in(evidence: Evidence) -> Seen | None:
    """An axis that the inputs leave free and a literal inside the graph fixes."""
    free = free_symbols(evidence)
    return seen((*_pinned(evidence, free), *_literal_shapes(evidence, free))) if free else None


def _pinned(evidence: Evidence, free: set[str]) -> Iterator[str]:
    """Elementwise operators of which one side is the free axis and the other a literal above 1."""
    for node in evidence.nodes:
        if node.op_type not in ELEMENTWISE:
            continue
        shapes = [dims for value in node.inputs if (dims := evidence.dims(value)) is not None]
        rank = max((len(dims) for dims in shapes), default=0)
        for axis in range(1, rank + 1):
            sizes = {dims[-axis] for dims in shapes if len(dims) >= axis}
            pins = [size for size in sizes if isinstance(size, int) and size > 1]
            if pins and sizes & free:
                yield f"{label(node)} ({', '.join(map(str, sizes & free))} = {pins[0]})"


def _literal_shapes(evidence: Evidence, free: set[str]) -> Iterator[str]:
    """Reshape and Expand to literals alone of something with a free axis."""
    for node in evidence.nodes:
        wanted = evidence.values(node.inputs[1]) if node.op_type in RESULT_KEEPERS and len(node.inputs) > 1 else None
        dims = evidence.dims(node.inputs[0]) if wanted is not None else None
        if wanted is None or dims is None:
            continue
        sizes = [int(size) for size in wanted.reshape(-1)]
        if _fixes(node.op_type, sizes, dims, free):
            yield f"{label(node)} (to {sizes})"


def _fixes(op_type: str, sizes: list[int], dims: tuple[Dim, ...], free: set[str]) -> bool:
    if op_type == "Reshape":
        return any(dim in free for dim in dims) and FREE not in sizes and COPY not in sizes
    return any(size > 1 and dim in free for size, dim in zip(sizes[::-1], dims[::-1], strict=False))


def reshape_fixes_rows(evidence: Evidence) -> Seen | None:
    """A Reshape whose first size is a literal above 1 although its input's first axis is free."""
    free = free_symbols(evidence)
    names = []
    for node in evidence.nodes:
        wanted = evidence.values(node.inputs[1]) if node.op_type == "Reshape" and len(node.inputs) > 1 else None
        dims = evidence.dims(node.inputs[0]) if wanted is not None else None
        if wanted is None or not dims or dims[0] not in free or wanted.size < len(dims):
            continue
        sizes = [int(size) for size in wanted.reshape(-1)]
        if sizes[0] > 1 and FREE in sizes and len(dims) > 1 and sizes[0] not in dims[1:]:
            names.append(f"{label(node)} ({dims[0]} = {sizes[0]}, to {sizes})")
    return seen(names)


def inference_fails(evidence: Evidence) -> Seen | None:
    """Shapes that contradict each other, on which quantizers and optimizers die."""
    failure = evidence.shapes.failure
    return None if failure is None else Seen((), 1, failure)


def grid_fails(evidence: Evidence) -> Seen | None:
    """Seen in a run: sizes other than the first fail although the axes are declared free."""
    trials = () if evidence.observed is None else evidence.observed.trials
    if not trials or trials[0].error is not None:
        return None
    return seen(f"{trial.sizes}: {trial.error}" for trial in trials if trial.error is not None and not trial.padded)


def misdeclared(evidence: Evidence) -> Seen | None:
    """Seen in a run: outputs of other shapes than the graph declares."""
    trials = () if evidence.observed is None else evidence.observed.trials
    return seen(dict.fromkeys(name for trial in trials for name in trial.misshapen))


RULES = (
    Rule(
        "TC301",
        INFO,
        "No input has a dynamic axis",
        "The model takes the sizes of the trace and no others.",
        "Export with dynamic_shapes, if other sizes are wanted.",
        all_fixed,
    ),
    Rule(
        "TC302",
        ERROR,
        "Inputs have a dynamic first axis and an output does not",
        "Another batch size fails, or returns the rows of the trace.",
        "Make sizes from the input's shape in the model, not from Python numbers, and export again.",
        output_fixed,
    ),
    Rule(
        "TC303",
        ERROR,
        "A literal size fixes a dynamic axis",
        "Every other size fails at run time.",
        "Make the size from the input's shape in the model (x.shape[0], -1), and export again.",
        baked_in,
    ),
    Rule(
        "TC304",
        ERROR,
        "A Reshape fixes the rows",
        "Rows are mixed up or the run fails at any other batch size.",
        "Use -1 or the input's own size for the batch axis.",
        reshape_fixes_rows,
    ),
    Rule(
        "TC305",
        WARNING,
        "Shape inference fails",
        "Quantizers and optimizers that need shapes die or skip nodes.",
        "Correct the declared shapes; the runtime itself may still load the model.",
        inference_fails,
    ),
    Rule(
        "TC306",
        ERROR,
        "Dynamic axes that fail at other sizes",
        "The axes are declared free, and runs at these sizes fail.",
        "Export again with named, tied axes, and run a grid of sizes against the source.",
        grid_fails,
    ),
    Rule(
        "TC307",
        WARNING,
        "Outputs have other shapes than declared",
        "Consumers that allocate by the declaration fail.",
        "Declare the shapes that the graph returns.",
        misdeclared,
    ),
)
