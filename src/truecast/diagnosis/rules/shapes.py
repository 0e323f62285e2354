"""TC3xx: axes that are dynamic in name only."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from math import prod

import onnx_ir as ir

from truecast.diagnosis.evidence import Evidence, label
from truecast.diagnosis.inference import NAME_DOMAIN, NO_DOMAIN, Dim
from truecast.diagnosis.model import Seen, seen
from truecast.diagnosis.rules.declared import OF_TYPES, type_complaints
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
Pin = tuple[str, int]
"""A free axis and the literal that fixes it."""
FIRST_STATE = 5
"""Input of a recurrent layer that is its first hidden state; an LSTM's cell follows."""
ROW_TAKERS = ("Gather", "Slice")
BATCH_NAME = re.compile(r"[nb]|bs|.*batch.*", re.IGNORECASE)
"""Names of axes that hold rows, not steps of one row."""


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
    """An axis that is free in the inputs comes back as a literal."""
    return seen(dict.fromkeys((*_unkept_names(evidence), *_fixed_outputs(evidence))))


def _unkept_names(evidence: Evidence) -> Iterator[str]:
    """Output axes that are declared free under the name of an input's axis and that the graph makes a literal."""
    free = free_symbols(evidence)
    for value in evidence.graph.outputs:
        dims = evidence.dims(value)
        for name, got in zip(declared_dims(value), dims or (), strict=False):
            if name in free and isinstance(got, int):
                yield f"{value.name} (declared {name}, is {got})"


def declared_dims(value: ir.Value) -> tuple[Dim, ...]:
    """The shape that the file declares, whatever inference says."""
    return () if value.shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def _fixed_outputs(evidence: Evidence) -> Iterator[str]:
    """Outputs with a literal first axis although that of the inputs is free."""
    rows = first_symbols(evidence)
    for value in evidence.graph.outputs if rows else ():
        sizes = evidence.dims(value)
        if not sizes or not isinstance(sizes[0], int) or value in evidence.constants:
            continue
        lost = _takes_one_row(value, rows, evidence) if sizes[0] == 1 else _is_static(value) and _carries_batch(value)
        if lost and (declared_dims(value)[:1] or (None,))[0] not in free_symbols(evidence):
            yield f"{value.name} {list(sizes)}"


def first_symbols(evidence: Evidence) -> set[str]:
    """Names of the first axes that inputs leave free."""
    return {d for v in real_inputs(evidence) for d in declared_dims(v)[:1] if isinstance(d, str)}


def _is_static(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.is_static()


def _carries_batch(value: ir.Value) -> bool:
    """Whether the last operator keeps its input's rows; a reduction or a Shape makes a fixed result rightly."""
    producer = value.producer()
    return producer is not None and not producer.op_type.startswith(
        ("Reduce", "Shape", "Size", "Gather", "ArgM", "NonZero")
    )


def _takes_one_row(value: ir.Value, rows: set[str], evidence: Evidence) -> bool:
    """Whether the axis of the batch, by its name, ends in a Gather or Slice: one text in place of all."""
    named = {name for name in rows if BATCH_NAME.fullmatch(name)}
    seen_values, waiting = {value}, [value]
    while waiting:
        producer = waiting.pop().producer()
        if producer is None:
            continue
        for source in (v for v in producer.inputs if v is not None and v not in seen_values):
            dims = evidence.dims(source)
            if dims and dims[0] in named:
                if producer.op_type in ROW_TAKERS and source is producer.inputs[0]:
                    return True
                continue  # the batch ends here, in an operator that may end it
            seen_values.add(source)
            waiting.append(source)
    return False


def baked_in(evidence: Evidence) -> Seen | None:
    """An axis that the inputs leave free and a literal inside the graph fixes."""
    free = free_symbols(evidence)
    return seen((*_pinned(evidence, free), *_literal_shapes(evidence, free))) if free else None


def _pinned(evidence: Evidence, free: set[str]) -> Iterator[str]:
    """Operators of which one side has the free axis and the other a literal that cannot follow it."""
    for node in evidence.nodes:
        look = PINNING.get(node.op_type, _broadcasts if node.op_type in ELEMENTWISE else None)
        fault = look(node, evidence, free) if look is not None else None
        if fault is not None:
            yield f"{label(node)} ({fault[0]} = {fault[1]})"


def _broadcasts(node: ir.Node, evidence: Evidence, free: set[str]) -> Pin | None:
    """An elementwise operator; a literal 1 broadcasts."""
    shapes = [dims for value in node.inputs if (dims := evidence.dims(value)) is not None]
    return _clash([dims[::-1] for dims in shapes], free, smallest=2)


def _joins(node: ir.Node, evidence: Evidence, free: set[str]) -> Pin | None:
    """A Concat, whose other axes must agree; nothing broadcasts."""
    shapes = [evidence.dims(value) for value in node.inputs]
    axis = node.attributes.get_int("axis", 0)
    known = [dims for dims in shapes if dims]
    return _clash([(*dims[: axis % len(dims)], None, *dims[axis % len(dims) + 1 :]) for dims in known], free)


def _clash(shapes: Sequence[Sequence[Dim]], free: set[str], smallest: int = 1) -> Pin | None:
    """The first axis that is free in one shape and a literal of at least `smallest` in another."""
    for sizes in zip_longest(*shapes):
        pins = [size for size in sizes if isinstance(size, int) and size >= smallest]
        if pins and (names := free.intersection(size for size in sizes if isinstance(size, str))):
            return ", ".join(sorted(names)), pins[0]
    return None


def _starts(node: ir.Node, evidence: Evidence, free: set[str]) -> Pin | None:
    """A recurrent layer whose first state has the rows of the trace."""
    rows = (evidence.dims(node.inputs[0]) or ())[1:2]
    states = [evidence.dims(value) for value in node.inputs[FIRST_STATE : FIRST_STATE + 2]]
    return _clash([rows, *(dims[1:2] for dims in states if dims)], free)


def _drops(node: ir.Node, evidence: Evidence, free: set[str]) -> Pin | None:
    """A Squeeze of a free axis, outside a branch that asked for its size."""
    dims = evidence.dims(node.inputs[0])
    if dims is None or node.graph is not evidence.graph:
        return None
    given = evidence.values(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    axes = given.reshape(-1).tolist() if given is not None else node.attributes.get_ints("axes", range(len(dims)))
    if given is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        return None
    names = [dims[axis] for axis in axes if -len(dims) <= axis < len(dims) and dims[axis] in free]
    return (str(names[0]), 1) if names else None


def _divides(node: ir.Node, evidence: Evidence, free: set[str]) -> Pin | None:
    """A Split of a free axis into literal sizes."""
    dims, axis = evidence.dims(node.inputs[0]), node.attributes.get_int("axis", 0)
    sizes = evidence.values(node.inputs[1]) if len(node.inputs) > 1 else None
    if dims is None or sizes is None or not -len(dims) <= axis < len(dims) or dims[axis] not in free:
        return None
    return str(dims[axis]), int(sizes.sum())


PINNING: Mapping[str, Callable[[ir.Node, Evidence, set[str]], Pin | None]] = {
    "Concat": _joins,
    "GRU": _starts,
    "LSTM": _starts,
    "RNN": _starts,
    "Split": _divides,
    "Squeeze": _drops,
}
"""How each operator can fix an axis: the axis and the literal."""


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
    """A Reshape whose first size is a literal although its input's first axis is free."""
    free = free_symbols(evidence)
    names = []
    for node in evidence.nodes:
        wanted = evidence.values(node.inputs[1]) if node.op_type == "Reshape" and len(node.inputs) > 1 else None
        dims = evidence.dims(node.inputs[0]) if wanted is not None else None
        if wanted is None or not dims or dims[0] not in free or len(dims) < 2:
            continue
        sizes = [int(size) for size in wanted.reshape(-1)]
        if FREE in sizes[1:] and (_cuts(sizes, dims) or (_mixes(sizes, dims) and _stays_one(node, evidence))):
            names.append(f"{label(node)} ({dims[0]} = {sizes[0]}, to {sizes})")
    return seen(names)


def _cuts(sizes: list[int], dims: tuple[Dim, ...]) -> bool:
    """Whether a literal number of rows above 1 is asked for that is none of the input's other sizes."""
    return sizes[0] > 1 and len(sizes) >= len(dims) and sizes[0] not in dims[1:]


def _mixes(sizes: list[int], dims: tuple[Dim, ...]) -> bool:
    """Whether one row is asked for, and -1 takes in the rows of all along with another axis."""
    if sizes[0] != 1:
        return False
    given = prod(size for size in sizes if size > 0)
    rest = [size for size in dims[1:] if isinstance(size, int)]
    return COPY not in sizes and (len(rest) < len(dims) - 1 or prod(rest) != given)


def _stays_one(node: ir.Node, evidence: Evidence) -> bool:
    """Whether what a node makes reaches an output that has one row, and is not turned back into rows."""
    met, waiting = set(node.outputs), list(node.outputs)
    while waiting:
        value = waiting.pop()
        if value.is_graph_output() and value in evidence.graph.outputs and (evidence.dims(value) or (None,))[0] == 1:
            return True
        for made in (made for reader in value.consumers() for made in reader.outputs if made not in met):
            met.add(made)
            waiting.append(made)
    return False


def inference_fails(evidence: Evidence) -> Seen | None:
    """Shapes that contradict each other: quantizers and optimizers die, and the runtime where an operator does."""
    failure = evidence.shapes.failure
    if failure is None or type_complaints(evidence):
        return None  # types are TC407's to say
    refusals = [said for said in evidence.shapes.refusals if OF_TYPES not in said]
    if not refusals:
        return Seen((), 1, failure, fix=NAME_DOMAIN if NO_DOMAIN in failure else None)
    return Seen((), 1, refusals[0], severity=ERROR, cost="The model does not load.", fix=MATCH_OPERATOR)


MATCH_OPERATOR = "Give the operator inputs of sizes that go together: correct the input's declared shape or the weight."


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
        "An axis that is dynamic in the inputs is a literal in an output",
        "Another size fails, returns what the trace had, or mixes up rows.",
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
        "Tools that infer shapes strictly stop, and quantizers skip nodes whose shapes they do not know.",
        "Correct the declared shapes; the runtime itself may still load the model.",
        inference_fails,
    ),
)
