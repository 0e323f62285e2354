"""How a router makes weights of the scores it has picked: divided by their sum, by a softmax, times a number.

Data flow: in the author's run, the largest scores that are picked → what its operators do with them → what the experts
are given; in the graph, the nodes between a pick and the experts. Where either does anything else, nothing is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from truecast.proof.operators import Array

SUM, SOFTMAX = "divided by their sum", "their softmax"
SAME_VALUES = frozenset(
    {"_to_copy", "view", "_unsafe_view", "unsqueeze", "squeeze", "expand", "clone", "detach", "alias"}
)
"""Operators of torch whose result has the values of what they are given."""
BOUNDED = frozenset({"add", "add_", "clamp", "clamp_", "clamp_min", "clamp_max"})
"""What keeps a sum from being zero, before it divides."""
PASSING = frozenset({"Log", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Identity"})
BOUNDING = frozenset({"Add", "Clip", "Max", *PASSING})
PICKS = frozenset({"TopK", "GatherElements"})
EXPERTS = frozenset({"MoE", "QMoE"})
NumberOf = Callable[[ir.Value | None], Array | None]
"""Gives the number that a value of a graph is, None for other values."""
LONGEST = 16
"""Most nodes between a pick and the experts."""


@dataclass(frozen=True)
class Routing:
    """What becomes of picked scores: normalisations in order, and the product of the numbers behind the last."""

    norms: tuple[str, ...] = ()
    factor: float = 1.0

    def then(self, step: str | float) -> Routing:
        """With a normalisation or a factor more."""
        if isinstance(step, str):
            return Routing((*self.norms, step), 1.0 if step == SUM else self.factor)
        return replace(self, factor=self.factor * step)

    def is_like(self, other: Routing, relative: float) -> bool:
        """Whether both are the same, but for the rounding of the factor."""
        return self.norms == other.norms and abs(self.factor - other.factor) <= relative * abs(other.factor)

    def __str__(self) -> str:
        return ", then ".join(self.norms or ("as they are",)) + f", times {self.factor:.6g}"


class Routes:
    """Follows picked scores through a run of the author's code; `found` is what each call of experts was given.

    Tensors that are followed are kept, so that no id is used twice. None stands for weights that were not followed.
    """

    def __init__(self) -> None:
        self.found: list[Routing | None] = []
        self._scores: dict[int, Routing] = {}
        self._picked: dict[int, bool] = {}
        self._sums: dict[int, int] = {}
        self._kept: list[Any] = []

    def experts(self, given: tuple[Any, ...]) -> None:
        """A call of experts, with hidden states, the chosen ones and their weights."""
        self.found.append(self._scores.get(id(given[2])) if len(given) > 2 else None)

    def note(self, name: str, given: Mapping[str, Any], result: Any, number: Callable[[Any], float | None]) -> None:
        """One operator of torch with its arguments by name; `number` gives the value of what is one."""
        source = id(given.get("self"))
        if name == "topk":
            self._keep(result[0], self._scores, Routing())
            self._keep(result[1], self._picked, True)
        elif name == "gather" and id(given["index"]) in self._picked:
            self._keep(result, self._scores, Routing())
        elif name in SAME_VALUES or name in BOUNDED:
            known: tuple[dict[int, Any], ...] = (self._scores, self._picked, self._sums)
            for where in known if name in SAME_VALUES else known[2:]:
                if source in where:
                    self._keep(result, where, where[source])
        elif name == "sum":
            self._keep(result, self._sums, source)
            self._kept.append(given["self"])
        elif source in self._scores and (step := self._step(name, given, number)) is not None:
            self._keep(result, self._scores, self._scores[source].then(step))

    def _step(self, name: str, given: Mapping[str, Any], number: Callable[[Any], float | None]) -> str | float | None:
        other = given.get("other")
        value = number(other)
        if name == "_softmax":
            return SOFTMAX
        if name in ("mul", "mul_", "div", "div_") and value is not None:
            return value if name.startswith("mul") else 1 / value
        if name in ("div", "div_") and self._sums.get(id(other)) == id(given["self"]):
            return SUM
        return None

    def _keep(self, tensor: Any, where: dict[int, Any], what: Any) -> None:
        where[id(tensor)] = what
        self._kept.append(tensor)


def routings(model: ir.Model, number: NumberOf) -> Iterator[tuple[str, Routing, float]]:
    """(node, what becomes of its picked scores, rounding of its numbers) of all weights that experts are given."""
    for node in model.graph:
        if node.op_type != "ScatterElements" or len(node.inputs) < 3:
            continue
        steps = list(_steps(node.inputs[2], number))
        if not steps or steps.pop() is not None:
            continue
        routing, rounding = Routing(), 0.0
        for step in reversed(steps):
            routing = routing.then(step if isinstance(step, str) else float(step))
            if isinstance(step, np.floating):
                rounding = max(rounding, float(np.finfo(step.dtype).eps))
        experts = _behind(node.outputs[0], EXPERTS)
        if experts is not None and not _weighed(experts):
            routing = routing.then(SUM)  # as the operator does
        yield (experts or node).name or "", routing, rounding


def _steps(value: ir.Value | None, number: NumberOf) -> Iterator[Any]:
    """What is done with picked scores, the last first; None in the end where all of it was understood."""
    for _ in range(LONGEST):
        node = None if value is None else value.producer()
        if node is None:
            return
        if node.op_type in PICKS:
            yield None
            return
        step, value = _step(node, number)
        if step is not None:
            yield step


def _step(node: ir.Node, number: NumberOf) -> tuple[Any, ir.Value | None]:
    """One node: what it does, and what it does it with; None for the second where that is not understood."""
    if node.op_type in PASSING or node.op_type == "Softmax":
        return SOFTMAX if node.op_type == "Softmax" else None, node.inputs[0]
    if node.op_type not in ("Mul", "Div"):
        return None, None
    first, second = node.inputs
    held = number(second)
    if held is not None:
        return (held[()] if node.op_type == "Mul" else held.dtype.type(1) / held[()]), first
    if node.op_type == "Mul" and (held := number(first)) is not None:
        return held[()], second
    total = _before(second, BOUNDING, "ReduceSum")
    same = total is not None and _unchanged(total.inputs[0]) is _unchanged(first)
    return (SUM, first) if node.op_type == "Div" and same else (None, None)


def _before(value: ir.Value | None, passing: frozenset[str], wanted: str) -> ir.Node | None:
    """The node of that type which a value is made by, through others that may lie between."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type != wanted:
        before = node.inputs[0] if node.op_type in passing else None
        node = None if before is None else before.producer()
    return node


def _unchanged(value: ir.Value | None) -> ir.Value | None:
    """A value before casts and reshapes."""
    while value is not None and (node := value.producer()) is not None and node.op_type in PASSING - {"Log"}:
        value = node.inputs[0]
    return value


def _behind(value: ir.Value, wanted: frozenset[str]) -> ir.Node | None:
    """The node of such a type which reads a value, through casts and reshapes."""
    for node in value.consumers():
        found = node if node.op_type in wanted else None
        found = found or (_behind(node.outputs[0], wanted) if node.op_type in PASSING else None)
        if found is not None:
            return found
    return None


def _weighed(experts: ir.Node) -> bool:
    """Whether the result is multiplied with a sum: that of the weights, which the operator divides by."""
    product = _behind(experts.outputs[0], frozenset({"Mul"}))
    return product is not None and any(_before(value, PASSING, "ReduceSum") is not None for value in product.inputs)
