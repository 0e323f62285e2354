"""Where an artifact parts from the author's model: the first layer and node, and why.

Data flow: weights that are not the checkpoint's are named outright. Otherwise the author's model is recorded at a point
that fails → the graph is cut (see `cuts`), so that every piece runs on the author's own numbers → the first piece, in the
order of the graph, whose result is off beyond the pieces' usual rounding is the culprit → its nodes are evaluated once
more by onnx's reference evaluator:

| the evaluator agrees with | the cause |
|---|---|
| the author | the kernel: ONNX Runtime computes something else than the operator's specification |
| ONNX Runtime, and the piece reads a weight that differs from the author's | the weight |
| ONNX Runtime otherwise | the converter: the graph says something else than the author |
| ONNX Runtime, in float16, by no more than its rounding | precision |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from torch import nn

from truecast.artifact import Manifest
from truecast.proof.cuts import (
    GIVEN,
    Cut,
    cut,
    feeds,
    find_cuts,
    fitted,
    initializers_of,
    module_of,
    piece,
    tapped,
)
from truecast.proof.held import HeldWeight, array_of, held_weights, load_graph
from truecast.proof.operators import EVALUATED, Array
from truecast.proof.parity import HALF_EPSILON
from truecast.proof.points import Point
from truecast.proof.recording import AttentionRecord, Recording, record
from truecast.proof.reference import Reference
from truecast.proof.sessions import RUN_ERRORS, exact_products, session_of
from truecast.proof.weights import Fault

LEAST = 1e-5
"""An error below this, in parts of the piece's largest value, is rounding; healthy pieces have 1e-7 to 2e-6."""
UNUSUAL = 30.0
"""How many times the usual error of the graph's pieces makes a piece suspicious."""
SAME_WEIGHT = 1e-6
"""Largest difference, in parts of the largest weight, of weights that are the same."""
QUIET = frozenset(
    {"Reshape", "Transpose", "Cast", "Identity", "Unsqueeze", "Squeeze", "Split", "Slice", "Shape", "Concat"}
)
"""Operators that move numbers and rarely are the cause."""
LAYER = re.compile(r"\.(\d+)(?=[./]|$)")


class Cause(StrEnum):
    """Why a piece diverges."""

    CONVERTER = "converter"
    WEIGHT = "weight"
    KERNEL = "kernel"
    PRECISION = "precision"


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


def bisect(
    folder: Path,
    reference: Reference,
    manifest: Manifest,
    points: Sequence[Point],
    faults: Sequence[Fault] = (),
) -> Divergence | None:
    """The first divergence of the graph in `folder`, or None when every piece is sound at the given points.

    Args:
        folder: the artifact.
        reference: the author's model with the weights the graph should have.
        manifest: of the artifact.
        points: where to look; those at which parity failed.
        faults: weights already known to differ from the checkpoint's.
    """
    model = load_graph(folder, manifest.graph.file)
    exact_products(model)
    if faults:
        return _weight_fault(model, faults)
    weights = held_weights(model, manifest.weights, reference.sources)
    search = _Search(folder, reference, manifest, model, weights)
    for point in points:
        for number in range(len(point.pieces)):
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
    for node in model.graph:
        for name in initializers_of([node]):
            if name in by_name:
                fault = by_name[name]
                more = f"; {len(faults) - 1} other weights differ too" if len(faults) > 1 else ""
                detail = f"{fault.parameter} is not the checkpoint's ({fault.detail}){more}"
                return Divergence(layer_number(fault.parameter), node.name or "", Cause.WEIGHT, detail)
    first = faults[0]
    return Divergence(layer_number(first.parameter), first.parameter, Cause.WEIGHT, first.detail)


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
        recording = record(self.reference, point, number)
        fed = feeds(self.model, self.manifest.graph, point, number, recording.past)
        try:
            given = self._given(recording, fed)
            pieces = self._pieces(given, fed, _real(point, number))
        except RUN_ERRORS as error:
            return _refusal(self.model, str(error))
        limit = max(LEAST, UNUSUAL * float(np.median([piece.error for piece in pieces] or [0.0])))
        culprit = next((piece for piece in pieces if not piece.error <= limit), None)
        if culprit is None:
            return None
        arrays = {name: array for name, (_, array) in given.items()}
        return self._name(culprit, recording, cut(self.model, arrays), fed | _as_inputs(arrays), point, number)

    def _given(self, recording: Recording, fed: Mapping[str, Any]) -> dict[str, tuple[Cut, Array]]:
        """The cuts, each with the author's array in the graph's layout and dtype."""
        cuts = find_cuts(self.model, recording, self._head())
        names = [c.value for c in cuts]
        own = session_of(tapped(self.model, names), self.folder).run(None, dict(fed))
        fitting = {}
        for found, array in zip(cuts, own, strict=True):
            want = fitted(found.want, array.shape, array)
            if want is not None:
                fitting[found.value] = (found, np.ascontiguousarray(want.astype(array.dtype)))
        return fitting

    def _head(self) -> str:
        head = self.reference.model.get_output_embeddings()
        return next((name for name, module in self.reference.model.named_modules() if module is head), "")

    def _pieces(self, given: Mapping[str, tuple[Cut, Array]], fed: Mapping[str, Any], real: Array) -> list[_Piece]:
        arrays = {name: array for name, (_, array) in given.items()}
        session = session_of(cut(self.model, arrays), self.folder)
        taken = {value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())}
        inputs = {name: array for name, array in {**fed, **_as_inputs(arrays)}.items() if name in taken}
        results = session.run(list(arrays), inputs)
        return [
            _Piece(found, got, want, _error(got, want, real))
            for (found, want), got in zip(given.values(), results, strict=True)
        ]

    def _name(
        self, culprit: _Piece, recording: Recording, model: ir.Model, fed: Mapping[str, Any], point: Point, number: int
    ) -> Divergence:
        """Says which node of a piece is to blame, and why."""
        nodes = piece(model, culprit.cut.value)
        node = next((n for n in reversed(nodes) if n.op_type not in QUIET), nodes[-1])
        real = _real(point, number)
        kind, hint = self._cause(culprit, model, node, nodes, fed, real)
        if kind is Cause.CONVERTER:
            hint = self._hint(node, recording) or hint
        about = (
            f"{culprit.cut.about} is off by {culprit.error:.1e} of its largest value at {point.name}, run {number + 1}"
        )
        operators = " → ".join(n.op_type for n in nodes if n.op_type not in QUIET) or node.op_type
        layer = culprit.cut.layer if culprit.cut.layer is not None else layer_number(node.name or culprit.cut.value)
        return Divergence(layer, node.name or culprit.cut.value, kind, f"{operators}: {about}{hint and '; ' + hint}")

    def _cause(
        self,
        culprit: _Piece,
        model: ir.Model,
        node: ir.Node,
        nodes: Sequence[ir.Node],
        fed: Mapping[str, Any],
        real: Array,
    ) -> tuple[Cause, str]:
        if (wrong := self._wrong_weight(nodes)) is not None:
            return Cause.WEIGHT, wrong
        computed = _evaluated(model, self.model, culprit.cut.value, fed)
        if computed is None:
            return Cause.CONVERTER, ""
        if _error(computed, culprit.want, real) < culprit.error / 10:
            if culprit.got.dtype == np.float16 and culprit.error <= ROUNDINGS * HALF_EPSILON:
                return Cause.PRECISION, "float16 rounds that much"
            return Cause.KERNEL, "the operators' specification gives the author's numbers, ONNX Runtime does not"
        return Cause.CONVERTER, ""

    def _wrong_weight(self, nodes: Sequence[ir.Node]) -> str | None:
        """Whether a node reads a weight that is not the one the author's module of that name has."""
        by_initializer: dict[str, list[HeldWeight]] = {}
        for weight in self.weights.values():
            for name in weight.initializers:
                by_initializer.setdefault(name, []).append(weight)
        for node in nodes:
            held = [w for name in initializers_of([node]) for w in by_initializer.get(name, [])]
            for weight in {w.parameter: w for w in held}.values():
                if (sentence := self._compare_weight(node, weight)) is not None:
                    return sentence
        return None

    def _compare_weight(self, node: ir.Node, weight: HeldWeight) -> str | None:
        module = module_of(node.outputs[0], self._head())
        owner = weight.parameter.rpartition(".")[0]
        owners = _expanded(module)
        tied = {owner, *(p.rpartition(".")[0] for p, t in self.reference.sources.tied.items() if t == weight.parameter)}
        known = {name for name, _ in self.reference.model.named_modules()}
        if set(owners) <= known and not tied & set(owners):
            return f"it reads {weight.parameter}, which belongs to another module"
        parameter = self.reference.parameters.get(weight.parameter)
        if parameter is None:
            return None
        want = parameter.detach().numpy()
        got = weight.rows(0, weight.shape[0] if weight.shape else 1).reshape(weight.shape).astype(np.float32)
        difference = np.abs((got.T if self.reference.turned(weight) else got) - want).max()
        return (
            None
            if difference <= SAME_WEIGHT * np.abs(want).max()
            else f"{weight.parameter} differs by {difference:.2g}"
        )

    def _hint(self, node: ir.Node, recording: Recording) -> str:
        """What the author's module or call says that the node does not."""
        if node.op_type == "GroupQueryAttention":
            past = node.inputs[3]
            layer = int((past.name or "").split(".")[1]) if past is not None else 0
            layers = sorted(
                int((n.inputs[3].name or "").split(".")[1])
                for n in self.model.graph
                if n.op_type == "GroupQueryAttention" and n.inputs[3] is not None
            )
            return _attention_hint(node, recording.attention[layers.index(layer)])
        if "epsilon" in node.attributes:
            modules = dict(self.reference.model.named_modules())
            return _epsilon_hint(node, modules.get(module_of(node.outputs[0], self._head())))
        return ""


ROUNDINGS = 16.0
"""Roundings of float16 that a sound piece may add up."""


def _expanded(module: str) -> list[str]:
    """The modules behind a name: several where products were made one."""
    first, *others = module.split("+")
    stem = first.rpartition(".")[0]
    return [first, *(f"{stem}.{other}" for other in others)]


def _attention_hint(node: ir.Node, record: AttentionRecord) -> str:
    settings = record.settings
    said = {
        name: node.attributes[name].value
        for name in ("scale", "softcap", "local_window_size")
        if name in node.attributes
    }
    width = record.query.shape[-1]
    scale = settings.get("scaling") or width**-0.5
    differences = []
    if abs((said.get("scale") or width**-0.5) - scale) > 1e-6 * abs(scale):
        differences.append(f"scale is {said.get('scale'):.6g}, the author's is {scale:.6g}")
    if abs((said.get("softcap") or 0.0) - (settings.get("softcap") or 0.0)) > 1e-6:
        differences.append(f"softcap is {said.get('softcap')}, the author's is {settings.get('softcap')}")
    window = settings.get("sliding_window")
    if "sliding_window" in settings and said.get("local_window_size", -1) != (window or -1):
        differences.append(f"local_window_size is {said.get('local_window_size', -1)}, the author's window is {window}")
    return ", ".join(differences)


def _epsilon_hint(node: ir.Node, module: nn.Module | None) -> str:
    epsilon = node.attributes["epsilon"].as_float()
    known = [
        v for v in (module.__dict__.values() if module is not None else ()) if isinstance(v, float) and 0 < v < 0.1
    ]
    if not known or any(abs(epsilon - value) <= 1e-6 * value for value in known):
        return ""
    return f"epsilon is {epsilon:.3g}, the author's is {known[0]:.3g}"


def _refusal(model: ir.Model, message: str) -> Divergence | None:
    """A run that fails names its node."""
    found = re.search(r"Name:'([^']+)'", message)
    if found is None:
        return None
    node = next((n for n in model.graph if n.name == found.group(1)), None)
    operator = node.op_type if node is not None else "node"
    return Divergence(
        layer_number(found.group(1)), found.group(1), Cause.CONVERTER, f"{operator} refuses to run: {message}"
    )


def _real(point: Point, number: int) -> Array:
    """Which of a run's positions hold tokens: bool [batch, new]."""
    run = list(point.runs())[number]
    return point.mask[:, run.start : run.end] == 1


def _error(got: Array, want: Array, real: Array) -> float:
    """max|got - want| / max|want| over the positions that hold tokens, wherever the layout has them."""
    if got.shape != want.shape:
        return np.inf
    got, want = got.astype(np.float32), want.astype(np.float32)
    batch, new = real.shape
    if got.shape[:2] == (batch, new):
        got, want = got[real], want[real]
    elif got.ndim == 4 and (got.shape[0], got.shape[2]) == (batch, new):
        got, want = got.transpose(0, 2, 1, 3)[real], want.transpose(0, 2, 1, 3)[real]
    elif got.shape[0] == batch * new:
        got, want = got[real.reshape(-1)], want[real.reshape(-1)]
    if not got.size:
        return 0.0
    error = float(np.abs(got - want).max())
    return error / (float(np.abs(want).max()) or 1.0) if np.isfinite(error) else np.inf


def _as_inputs(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {GIVEN + name: array for name, array in arrays.items()}


def _evaluated(model: ir.Model, whole: ir.Model, value: str, fed: Mapping[str, Any]) -> Array | None:
    """One value of a cut graph by onnx's reference evaluator, its float16 widened; None when it cannot evaluate it."""
    small = tapped(model, [value])
    keep = {id(node) for node in piece(small, value)} | {id(n) for n in small.graph if n.op_type == "Constant"}
    small.graph.remove([node for node in small.graph if id(node) not in keep])
    needed = {v for node in small.graph for v in node.inputs if v is not None}
    small.graph.inputs[:] = [v for v in small.graph.inputs if v in needed and v.name not in small.graph.initializers]
    for name, initializer in list(small.graph.initializers.items()):
        if initializer not in needed:
            del small.graph.initializers[name]
        else:
            initializer.const_value = ir.tensor(np.asarray(fed.get(name, array_of(whole, name))), name=name)
    try:
        evaluator = ReferenceEvaluator(ir.to_proto(small), new_ops=list(EVALUATED))
        inputs = {v.name: fed[v.name] for v in small.graph.inputs if v.name in fed}
        return np.asarray(evaluator.run(None, inputs)[0])
    except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError, KeyError, AssertionError):
        return None
