"""Why a piece of the graph diverges, and what the author's model says that the node does not.

The nodes of the piece are evaluated once more by onnx's reference evaluator, on the same inputs:

| the evaluator agrees with | the cause |
|---|---|
| the author | the kernel: ONNX Runtime computes something else than the operator's specification |
| the author, and the piece is float16, off by no more than its rounding | precision |
| ONNX Runtime, and the piece reads a weight that differs from the author's | the weight |
| ONNX Runtime otherwise | the converter: the graph says something else than the author |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from torch import nn

from truecast.proof.cuts import TOGETHER, initializers_of, layer_of_attention, module_of, piece, tapped
from truecast.proof.formulas import attention_faults
from truecast.proof.held import HeldWeight, array_of
from truecast.proof.measures import without_odd
from truecast.proof.operators import EVALUATED, Array
from truecast.proof.parity import HALF_EPSILON
from truecast.proof.recording import Recording
from truecast.proof.reference import Reference

SAME_WEIGHT = 1e-6
"""Largest difference, in parts of the largest weight, of weights that are the same."""
MUCH_BETTER = 10.0
"""The evaluator agrees with the author when its error is smaller than ONNX Runtime's by this factor."""
ROUNDINGS = 16.0
"""Roundings of float16 that a sound piece may add up."""
LARGEST_EPSILON = 0.1
"""Numbers of a module below this may be its epsilon."""


class Cause(StrEnum):
    """Why a piece diverges."""

    CONVERTER = "converter"
    WEIGHT = "weight"
    KERNEL = "kernel"
    PRECISION = "precision"


def relative_error(got: Array, want: Array, real: Array) -> float:
    """max|got - want| / max|want| over the positions that hold tokens (`real` [batch, new]), wherever they lie."""
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
    got, want = without_odd(got, want)
    error = float(np.abs(got - want).max())
    return error / (float(np.abs(want).max()) or 1.0) if np.isfinite(error) else np.inf


def kernel_cause(got: Array, error: float, evaluated: float | None) -> tuple[Cause, str]:
    """The cause where no weight is wrong; `evaluated` is the evaluator's error, None when it could not tell."""
    if evaluated is None or not evaluated < error / MUCH_BETTER:
        return Cause.CONVERTER, ""
    if got.dtype == np.float16 and error <= ROUNDINGS * HALF_EPSILON:
        return Cause.PRECISION, "float16 rounds that much"
    return Cause.KERNEL, "the operators' specification gives the author's numbers, ONNX Runtime does not"


def evaluate(model: ir.Model, whole: ir.Model, value: str, fed: Mapping[str, Any]) -> Array | None:
    """One value of a cut graph by onnx's reference evaluator; None when it cannot evaluate it.

    `whole` is the graph as loaded, whose initializers still have their data.
    """
    small = tapped(model, [value])
    keep = {id(node) for node in piece(small, value)} | {id(n) for n in small.graph if n.op_type == "Constant"}
    small.graph.remove([node for node in small.graph if id(node) not in keep])
    needed = {v for node in small.graph for v in node.inputs if v is not None}
    small.graph.inputs[:] = [v for v in small.graph.inputs if v in needed and v.name not in small.graph.initializers]
    for name, initializer in list(small.graph.initializers.items()):
        if initializer not in needed:
            del small.graph.initializers[name]
        else:
            held = fed.get(name) if name in fed else array_of(whole, name)
            initializer.const_value = ir.tensor(np.asarray(held), name=name)
    try:
        evaluator = ReferenceEvaluator(ir.to_proto(small), new_ops=list(EVALUATED))
        inputs = {name: fed[name] for v in small.graph.inputs if (name := v.name or "") in fed}
        results: Any = evaluator.run(None, inputs)
        result: Array = np.asarray(results[0])
    except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError, KeyError, AssertionError):
        return None
    return result


def head_of(reference: Reference) -> str:
    """The name of the module that gives the logits."""
    head: Any = reference.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return next((name for name, module in reference.model.named_modules() if module is head), "")


def wrong_weight(nodes: Sequence[ir.Node], reference: Reference, weights: Mapping[str, HeldWeight]) -> str | None:
    """Says which weight that the nodes read is not the one that the author's module of their name has."""
    readers: dict[str, list[HeldWeight]] = {}
    for weight in weights.values():
        for name in weight.initializers:
            readers.setdefault(name, []).append(weight)
    for node in nodes:
        held = {w.parameter: w for name in initializers_of([node]) for w in readers.get(name, [])}
        for weight in held.values():
            if sentence := _foreign(node, weight, reference) or _different(weight, reference):
                return sentence
    return None


def _foreign(node: ir.Node, weight: HeldWeight, reference: Reference) -> str | None:
    """Whether a node that is named after modules reads a weight of none of them."""
    first, *others = module_of(node.outputs[0], head_of(reference)).split(TOGETHER)
    stem = first.rpartition(".")[0]
    modules = {first, *(f"{stem}.{other}" for other in others)}
    tied = reference.sources.tied
    names = {weight.parameter, *(p for p, stored in tied.items() if stored == weight.parameter)}
    owners = {name.rpartition(".")[0] for name in names}
    if modules & owners or not modules <= {name for name, _ in reference.model.named_modules()}:
        return None
    return f"it reads {weight.parameter}, which belongs to another module"


def _different(weight: HeldWeight, reference: Reference) -> str | None:
    parameter = reference.parameters.get(weight.parameter)
    if parameter is None:
        return None
    want = parameter.detach().numpy()
    held = weight.rows(0, weight.shape[0] if weight.shape else 1).reshape(weight.shape).astype(np.float32)
    if weight.stack is not None and weight.parameter in reference.experts:
        held = weight.stack.as_parameter(held, reference.experts[weight.parameter])
    difference = float(np.abs((held.T if reference.turned(weight) else held) - want).max())
    same = difference <= SAME_WEIGHT * float(np.abs(want).max())
    return None if same else f"{weight.parameter} differs by {difference:.2g}"


def hint(node: ir.Node, model: ir.Model, recording: Recording, reference: Reference) -> str:
    """What the author's module or call says that the node does not; empty when nothing is known."""
    if node.op_type == "GroupQueryAttention":
        layers = sorted(layer_of_attention(n) for n in model.graph if n.op_type == node.op_type)
        return attention_faults(node, recording.attention[layers.index(layer_of_attention(node))])
    if "epsilon" in node.attributes:
        module = module_of(node.outputs[0], head_of(reference))
        return _epsilon_hint(node, dict(reference.model.named_modules()).get(module))
    return ""


def _epsilon_hint(node: ir.Node, module: nn.Module | None) -> str:
    epsilon = node.attributes["epsilon"].as_float()
    values = module.__dict__.values() if module is not None else ()
    known = [value for value in values if isinstance(value, float) and 0 < value < LARGEST_EPSILON]
    if not known or any(abs(epsilon - value) <= 1e-6 * value for value in known):
        return ""
    return f"epsilon is {epsilon:.3g}, the author's is {known[0]:.3g}"
