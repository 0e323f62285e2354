"""Where an artifact parts from the author's model: the first layer and node, and why.

Data flow: weights that are not the checkpoint's are named outright. Otherwise the author's model is recorded at a point
that fails → the graph is cut (see `cuts`), so that every piece runs on the author's own numbers → the first piece, in
the order of the graph, whose result is off beyond the pieces' usual rounding is the culprit → its cause (see `causes`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from truecast.artifact import Manifest
from truecast.proof.causes import Cause, evaluate, head_of, hint, kernel_cause, relative_error, wrong_weight
from truecast.proof.cuts import GIVEN, Cut, cut, feeds, find_cuts, fitted, piece, tapped
from truecast.proof.float_cache import with_float_cache
from truecast.proof.held import HeldWeight, held_weights, load_graph
from truecast.proof.operators import Array
from truecast.proof.points import Point
from truecast.proof.recording import Recording, record
from truecast.proof.reference import Reference
from truecast.proof.sessions import RUN_ERRORS, exact_products, session_of
from truecast.proof.tally import broke, reason
from truecast.proof.weights import Fault

BISECTED_POINTS = 3
"""Failing points that are looked at, in the order of the grid."""
LEAST = 1e-5
"""An error below this, in parts of the piece's largest value, is rounding; healthy pieces have 1e-7 to 2e-6."""
UNUSUAL = 30.0
"""How many times the usual error of the graph's pieces makes a piece suspicious."""
SHORT = 128
"""Positions of a point whose every run is looked at; of a longer one, only the run that failed."""
QUIET = frozenset(
    {"Reshape", "Transpose", "Cast", "Identity", "Unsqueeze", "Squeeze", "Split", "Slice", "Shape", "Concat"}
)
"""Operators that move numbers and rarely are the cause."""
LAYER = re.compile(r"\.(\d+)(?=[./]|$)")
NODE_IN_MESSAGE = re.compile(r"Name:'([^']+)'")


@dataclass(frozen=True)
class Divergence:
    """The first place that diverges. `layer` is its number, None outside the layers; `node` is the node's name."""

    layer: int | None
    node: str
    kind: Cause
    detail: str

    def __str__(self) -> str:
        """One sentence for the certificate."""
        where = f"layer {self.layer}" if self.layer is not None else "outside the layers"
        return f"First divergence: {where}, node {self.node!r} ({self.kind}): {self.detail}."


def located(
    folder: Path,
    reference: Reference,
    manifest: Manifest,
    failed: Sequence[tuple[Point, int]],
    faults: Sequence[Fault],
    report: Callable[[int, int], None],
) -> str:
    """What bisection says of a failed proof, in one sentence; arguments as `bisect` has them."""
    report(0, 1)
    try:
        found = bisect(folder, reference, manifest, failed[:BISECTED_POINTS], faults)
    except Exception as error:  # the graph is wrong, in a way that its pieces cannot be run
        return f"Bisection does not get through the graph ({broke(error)})."
    report(1, 1)
    if found is not None:
        return str(found)
    return (
        "Bisection found every piece of the graph sound on the author's own numbers; the error builds up between them."
    )


def bisect(
    folder: Path,
    reference: Reference,
    manifest: Manifest,
    points: Sequence[tuple[Point, int]],
    faults: Sequence[Fault] = (),
) -> Divergence | None:
    """The first divergence of the graph in `folder`, or None when every piece is sound at the given points.

    Args:
        folder: the artifact.
        reference: the author's model with the weights the graph should have.
        manifest: of the artifact.
        points: where to look; those at which parity failed, each with the first run that did.
        faults: weights already known to differ from the checkpoint's.
    """
    model = load_graph(folder, manifest.graph.file)
    exact_products(model)
    manifest = manifest.model_copy(update={"graph": with_float_cache(model, manifest.graph)})
    if faults:
        return _weight_fault(model, faults)
    weights = held_weights(model, manifest.weights, reference.sources)
    search = _Search(folder, reference, manifest, model, weights)
    for point, failed in points:
        for number in range(len(point.pieces)) if point.tokens.shape[1] <= SHORT else (failed,):
            if (found := search.at(point, number)) is not None:
                return found
    return None


def layer_number(name: str) -> int | None:
    """The number of the layer in a module's or value's name."""
    found = LAYER.search(name)
    return int(found.group(1)) if found else None


def _weight_fault(model: ir.Model, faults: Sequence[Fault]) -> Divergence:
    """The earliest node that reads a faulty weight."""
    by_name = {name: fault for fault in faults for name in fault.initializers}
    for node, names in _readers(model):
        fault = next((by_name[name] for name in names if name in by_name), None)
        if fault is not None:
            more = f"; {len(faults) - 1} other weights differ too" if len(faults) > 1 else ""
            detail = f"{fault.parameter} is not the checkpoint's ({fault.detail}){more}"
            layer = layer_number(node.name or fault.parameter)
            return Divergence(layer, node.name or "", Cause.WEIGHT, detail)
    first = faults[0]
    return Divergence(layer_number(first.parameter), first.parameter, Cause.WEIGHT, first.detail)


def _readers(model: ir.Model) -> Iterator[tuple[ir.Node, list[str]]]:
    """Every node that is fed activations, with the initializers it reads, be it through nodes that are fed none."""
    roots: dict[ir.Value, list[str]] = {value: [name] for name, value in model.graph.initializers.items()}
    for node in model.graph:
        given = [value for value in node.inputs if value is not None]
        names = [name for value in given for name in roots.get(value, [])]
        if all(value in roots for value in given):
            roots |= dict.fromkeys(node.outputs, names)
        else:
            yield node, names


@dataclass(frozen=True)
class _Place:
    """One run of a point: what the author's model did there, and what the graph is fed."""

    point: Point
    number: int
    recording: Recording
    fed: Mapping[str, Any]

    @property
    def real(self) -> Array:
        """Which of the run's positions hold tokens: bool [batch, new]."""
        run = list(self.point.runs())[self.number]
        real: Array = self.point.mask[:, run.start : run.end] == 1
        return real


@dataclass(frozen=True)
class _Piece:
    """A cut's result beside what the author has: `error` in parts of the author's largest value."""

    cut: Cut
    got: Array
    want: Array
    error: float


@dataclass(frozen=True)
class _Search:
    folder: Path
    reference: Reference
    manifest: Manifest
    model: ir.Model
    weights: Mapping[str, HeldWeight]

    def at(self, point: Point, number: int) -> Divergence | None:
        """The first divergence in one run of a point."""
        if self._unlike(point, number):
            return None
        recording = record(self.reference, point, number)
        fed = feeds(self.model, self.manifest.graph, point, number, recording.past)
        place = _Place(point, number, recording, fed)
        try:
            given = self._given(place)
            pieces = self._pieces(given, place)
        except RUN_ERRORS as error:
            return _refusal(self.model, reason(error))
        limit = max(LEAST, UNUSUAL * float(np.median([piece.error for piece in pieces] or [0.0])))
        culprit = next((piece for piece in pieces if not piece.error <= limit), None)
        return None if culprit is None else self._name(culprit, given, place)

    def _unlike(self, point: Point, number: int) -> bool:
        """Where the graph's cache lies otherwise than the author's: rows padded on the right have no holes in it."""
        start = list(point.runs())[number].start
        return self.manifest.graph.padding == "right" and not point.mask[:, :start].all()

    def _given(self, place: _Place) -> dict[str, tuple[Cut, Array]]:
        """The cuts, each with the author's array in the graph's layout and dtype."""
        cuts = find_cuts(self.model, place.recording, head_of(self.reference))
        own = session_of(tapped(self.model, [c.value for c in cuts]), self.folder).run(None, dict(place.fed))
        fitting = {}
        for found, array in zip(cuts, own, strict=True):
            want = fitted(found.want, array.shape, array)
            if want is not None:
                fitting[found.value] = (found, np.ascontiguousarray(want.astype(array.dtype)))
        return fitting

    def _pieces(self, given: Mapping[str, tuple[Cut, Array]], place: _Place) -> list[_Piece]:
        arrays = {name: array for name, (_, array) in given.items()}
        session = session_of(cut(self.model, arrays), self.folder)
        taken = {value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())}
        inputs = {name: array for name, array in {**place.fed, **_as_inputs(arrays)}.items() if name in taken}
        results = session.run(list(arrays), inputs)
        return [
            _Piece(found, got, want, relative_error(got, want, place.real))
            for (found, want), got in zip(given.values(), results, strict=True)
        ]

    def _name(self, culprit: _Piece, given: Mapping[str, tuple[Cut, Array]], place: _Place) -> Divergence:
        """Says which node of a piece is to blame, and why."""
        arrays = {name: array for name, (_, array) in given.items()}
        model = cut(self.model, arrays)
        value = culprit.cut.value
        nodes = piece(model, value)
        node = next((n for n in reversed(nodes) if n.op_type not in QUIET), nodes[-1])
        name = node.name or value
        if (said := wrong_weight(nodes, self.reference, self.weights)) is not None:
            kind = Cause.WEIGHT
        else:
            computed = evaluate(model, self.model, value, {**place.fed, **_as_inputs(arrays)})
            error = None if computed is None else relative_error(computed, culprit.want, place.real)
            kind, said = kernel_cause(culprit.got, culprit.error, error)
            if kind is Cause.CONVERTER:
                said = hint(node, self.model, place.recording, self.reference)
        near = [n for n in nodes if n.op_type not in QUIET and layer_number(n.name or "") == layer_number(name)]
        operators = " → ".join(n.op_type for n in near) or node.op_type
        where = f"{place.point.name}, run {place.number + 1}"
        off = f"{culprit.cut.about} is off by {culprit.error:.1e} of its largest value at {where}"
        layer = culprit.cut.layer if culprit.cut.layer is not None else layer_number(name)
        return Divergence(layer, name, kind, f"{operators}: {off}" + (f"; {said}" if said else ""))


def _refusal(model: ir.Model, message: str) -> Divergence | None:
    """A run that fails names its node."""
    found = NODE_IN_MESSAGE.search(message)
    if found is None:
        return None
    name = found.group(1)
    operator = next((n.op_type for n in model.graph if n.name == name), "node")
    return Divergence(layer_number(name), name, Cause.CONVERTER, f"{operator} refuses to run: {message}")


def _as_inputs(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {GIVEN + name: array for name, array in arrays.items()}
