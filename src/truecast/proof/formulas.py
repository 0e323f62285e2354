"""Tier 1, formulas: numbers and choices that no weight holds, node by node, against what the author's code used.

Data flow: one run of the author's model → the numbers in its formulas (`executed`), and what its attention was asked
for → the nodes of the graph that hold such a number → those that hold another one. In 16 bits an epsilon that is a
tenth, or a GELU of the other kind, costs less than the float's rounding, so that no comparison of outputs shows it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from truecast.artifact import Check
from truecast.proof.cuts import layer_of_attention
from truecast.proof.executed import CUBIC, LARGEST_EPSILON, Formulas, formulas_of
from truecast.proof.operators import Array
from truecast.proof.recording import AttentionRecord, Recording, watched_attention
from truecast.proof.reference import Reference
from truecast.proof.routing import routings
from truecast.proof.tally import counted

TIER, NAME = "static", "numbers in the author's formulas"
SAME = 1e-6
"""Largest relative difference of equal numbers: one of them may be float32."""
ATTENTION = "GroupQueryAttention"
CURVES = frozenset({"Softmax", "Tanh", "Sigmoid"})
"""Operators whose input may be scaled by a number of the author's."""
PASSING = frozenset({"Add", "Where", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Transpose", "Identity"})
"""Operators between such an operator and the factor."""
ROOTS = frozenset({"Sqrt", "Rsqrt", "Pow"})
BETWEEN = 6
"""Most nodes between a root and the weight of its norm, or a curve and its factor."""
OF_EXPERTS = (("activation_alpha", 1.0), ("activation_beta", 0.0), ("swiglu_limit", np.inf))
"""Attributes of experts that are numbers of the author's, but for the value that stands for none."""
IDS = 5
"""Tokens of the run that is watched."""


@dataclass
class _Found:
    """Faults, and how many numbers were compared, by what they are."""

    faults: list[str] = field(default_factory=list)
    compared: Counter[str] = field(default_factory=Counter)

    def take(self, kind: str, fault: str | None) -> None:
        """One comparison."""
        self.compared[kind] += 1
        if fault is not None:
            self.faults.append(fault)


def decoder_formulas(model: ir.Model, reference: Reference, context: int | None = None) -> Check:
    """The check of a decoder: its model runs on a few tokens, which `context` holds."""
    recording = Recording()
    table: Any = reference.model.get_input_embeddings()
    ids = np.arange(min(IDS, context or IDS), dtype=np.int64)[None] % len(table.weight)

    def run() -> None:
        reference.reset()
        with watched_attention(reference.model, recording):
            reference.step(reference.new_cache(), ids, np.ones_like(ids), np.arange(ids.size)[None])

    seen = formulas_of(reference.model, run)
    return formula_check(model, reference, seen, recording.attention)


def module_formulas(model: ir.Model, reference: Reference, run: Callable[[], Any]) -> Check:
    """The check of another module, which `run` calls."""
    return formula_check(model, reference, formulas_of(reference.model, run), [])


def formula_check(model: ir.Model, reference: Reference, seen: Formulas, attention: list[AttentionRecord]) -> Check:
    """Compares every number that a node of the graph holds with those that the author's code used."""
    found = _Found()
    owners = {name: name.rpartition(".")[0] for name in reference.parameters}
    _epsilons(model, owners, seen, found)
    _offsets(model, owners, seen, found)
    _attention(model, attention, found)
    _gelus(model, seen, found)
    _numbers(model, seen, found)
    _experts(model, seen, found)
    _routers(model, seen, found)
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(found.compared.items()))
    return counted(TIER, NAME, found.faults, "numbers", f"compared: {said or 'no node holds one'}")


def _epsilons(model: ir.Model, owners: Mapping[str, str], seen: Formulas, found: _Found) -> None:
    everywhere = set().union(*seen.epsilons.values()) if seen.epsilons else set()
    for node in model.graph:
        held = _epsilon_of(node)
        if held is None or not everywhere:
            continue
        places = {owners[name] for name in _parameters_near(node) if name in owners}
        wanted = set().union(*(seen.epsilons.get(place, set()) for place in places)) or everywhere
        known = ", ".join(f"{value:.3g}" for value in sorted(wanted))
        same = any(_is_same(held, value) for value in wanted)
        place = next(iter(sorted(places)), node.name)
        found.take("epsilons", None if same else f"epsilon of {place} is {float(held):.3g}, the author's is {known}")


def _epsilon_of(node: ir.Node) -> Array | None:
    """The epsilon of a norm: an attribute, or what is added in front of a root."""
    if "epsilon" in node.attributes:
        return np.float32(node.attributes["epsilon"].as_float())  # type: ignore[return-value]
    producer = node.inputs[0].producer() if node.op_type in ROOTS and node.inputs[0] is not None else None
    if producer is None or producer.op_type != "Add":
        return None
    number = next((n for n in map(_number, producer.inputs) if n is not None), None)
    return number if number is not None and 0 < number < LARGEST_EPSILON else None


def _parameters_near(node: ir.Node) -> Iterator[str]:
    """Weights that a norm reads, or that its result meets next."""
    for value in node.inputs[1:]:
        base = _weight_in(value)
        if base:
            yield base
    if "epsilon" in node.attributes:
        return
    current: ir.Node | None = node
    for _ in range(BETWEEN):
        current = next(iter(current.outputs[0].consumers()), None) if current is not None else None
        names = [name for value in (current.inputs if current is not None else ()) if (name := _weight_in(value))]
        if names:
            yield from names
            return


def _weight_in(value: ir.Value | None) -> str:
    """The name of the initializer that a value is made of: as it is, cast, or with a number added."""
    for _ in range(BETWEEN):
        node = None if value is None else value.producer()
        if value is None or node is None:
            break
        if node.op_type not in ("Add", "Cast", "Reshape", "Unsqueeze"):
            return ""
        value = next((v for v in node.inputs if v is not None and _number(v) is None), None)
    return (value.name or "") if value is not None and value.is_initializer() else ""


def _offsets(model: ir.Model, owners: Mapping[str, str], seen: Formulas, found: _Found) -> None:
    """What is added to the weights of norms."""
    held: dict[str, Array] = {}
    for node in model.graph:
        read = node.op_type == "Add" and bool(node.outputs[0].uses())
        names = [_weight_in(value) for value in node.inputs if _number(value) is None] if read else []
        number = next((n for n in map(_number, node.inputs) if n is not None), None) if any(names) else None
        if number is not None:
            held |= {owners[name]: number for name in names if name in owners}
    there = {owners[name] for name in map(str, model.graph.initializers) if name in owners}
    for place in sorted((held.keys() | seen.offsets.keys()) & there):
        got, want = held.get(place), seen.offsets.get(place)
        same = got is not None and want is not None and _is_same(got, want)
        said = f"{'nothing' if got is None else float(got)} is added to the weight of {place}, by the author {want}"
        found.take("offsets", None if same else said)


def _attention(model: ir.Model, records: list[AttentionRecord], found: _Found) -> None:
    nodes = sorted((n for n in model.graph if n.op_type == ATTENTION), key=layer_of_attention)
    for node, record in zip(nodes, records, strict=False):
        wrong = attention_faults(node, record)
        found.take("calls of attention", f"layer {layer_of_attention(node)}: {wrong}" if wrong else None)


def attention_faults(node: ir.Node, record: AttentionRecord) -> str:
    """What an attention operator is set to otherwise than the author's call; empty where nothing is."""
    said = {name: float(a.value) for name, a in node.attributes.items() if isinstance(a.value, int | float)}
    usual = float(record.query.shape[-1] ** -0.5)
    settings = {"scaling": usual, "softcap": None, "sliding_window": None, **record.settings}
    pairs = [
        ("scale", said.get("scale") or usual, settings["scaling"] or usual),
        ("softcap", said.get("softcap", 0.0), settings["softcap"] or 0.0),
    ]
    if "sliding_window" in record.settings:
        pairs.append(("local_window_size", said.get("local_window_size", -1.0), settings["sliding_window"] or -1))
    wrong = [
        f"{n} is {got:.6g}, the author's is {want:.6g}" for n, got, want in pairs if abs(got - want) > SAME * abs(want)
    ]
    return ", ".join(wrong)


def _gelus(model: ir.Model, seen: Formulas, found: _Found) -> None:
    """No more GELUs of a kind than the author's code calls; it may call some whose results nobody reads."""
    kinds: dict[str, list[str]] = {}
    for node in model.graph:
        if kind := _gelu_of(node):
            kinds.setdefault(kind, []).append(node.name or "")
    for kind, names in kinds.items():
        extra = names if not seen.gelus[kind] else names[seen.gelus[kind] :]
        for name in names:
            word, other = ("exact", "tanh") if kind == "none" else ("tanh", "exact")
            said = f"{name} is the {word} GELU, of which the author has {seen.gelus[kind]}, and {other} ones"
            found.take("GELUs", said if name in extra else None)


def _gelu_of(node: ir.Node) -> str:
    if node.op_type in ("Gelu", "BiasGelu"):
        approximate = node.attributes.get("approximate")
        return "none" if approximate is None else approximate.as_string()
    if node.op_type == "FastGelu":
        return "tanh"
    if node.op_type == "Erf":
        return "none"
    if node.op_type == "Tanh" and any(_is_same(n, CUBIC) for n in _factors(node, BETWEEN + BETWEEN, every=True)):
        return "tanh"
    return ""


def _numbers(model: ir.Model, seen: Formulas, found: _Found) -> None:
    """Factors in front of softmax, tanh and sigmoid: scales, soft caps."""
    for node in model.graph:
        if node.op_type not in CURVES or _gelu_of(node):
            continue
        for held in _factors(node, BETWEEN):
            fault = f"{node.name} is scaled by {float(held):.6g}, which is no number of the author's"
            found.take("factors", None if _is_known(held, seen.numbers) else fault)


def _factors(node: ir.Node, steps: int, every: bool = False) -> Iterator[Array]:
    """Numbers that the input of a node was multiplied with, divided by or, with `every`, anything beside them."""
    values = [node.inputs[0]]
    for _ in range(steps):
        producers = {id(p): p for value in values if value is not None and (p := value.producer()) is not None}
        values = []
        for producer in producers.values():
            if producer.op_type in ("Mul", "Div"):
                numbers = [n for n in map(_number, producer.inputs) if n is not None]
                yield from numbers
                values += list(producer.inputs) if every and len(numbers) < len(producer.inputs) else []
            elif producer.op_type in PASSING or (every and producer.op_type == "Pow"):
                values += list(producer.inputs) if producer.op_type == "Add" and every else [producer.inputs[0]]


def _experts(model: ir.Model, seen: Formulas, found: _Found) -> None:
    for node in model.graph:
        if node.op_type == "TopK" and seen.picked:
            number = _number(node.inputs[1]) if len(node.inputs) > 1 else None
            if number is not None:
                fault = f"{node.name} picks {int(number)}, the author {sorted(seen.picked)}"
                found.take("choices of experts", None if int(number) in seen.picked else fault)
        if node.op_type not in ("MoE", "QMoE"):
            continue
        picked = node.attributes.get_int("k", 1)
        fault = f"{node.name} takes {picked} experts for a token, the author {sorted(seen.picked)}"
        found.take("choices of experts", None if not seen.picked or picked in seen.picked else fault)
        for name, none in OF_EXPERTS:
            held = np.float32(node.attributes.get_float(name, none))
            if held != np.float32(none):
                fault = f"{name} of {node.name} is {float(held):.6g}, which is no number of the author's"
                found.take("numbers of experts", None if _is_known(held, seen.numbers) else fault)  # type: ignore[arg-type]


def _routers(model: ir.Model, seen: Formulas, found: _Found) -> None:
    """What becomes of the scores that a router picks, where all calls of the author's experts are understood."""
    known = [routing for routing in seen.routings if routing is not None]
    if not known or None in seen.routings:
        return
    for name, routing, rounding in routings(model, _number):
        same = any(routing.is_like(other, max(SAME, rounding)) for other in known)
        wanted = " or ".join(sorted({str(other) for other in known}))
        found.take("routers", None if same else f"the scores of {name} are {routing}, by the author {wanted}")


def _number(value: ir.Value | None) -> Array | None:
    """The number that a value is, in its own dtype; None for anything else."""
    if value is None:
        return None
    node = value.producer()
    if node is not None and node.op_type == "Cast" and (inner := _number(node.inputs[0])) is not None:
        return inner
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size != 1:
        return None
    number: Array = tensor.numpy().reshape(())
    return number


def _is_known(held: Array, numbers: set[float]) -> bool:
    return any(_is_same(held, n) or (n and _is_same(held, 1 / n)) for n in numbers)


def _is_same(held: Array, number: float) -> bool:
    """Whether a number of the graph is one of the author's, as rounded to the graph's dtype."""
    with np.errstate(over="ignore"):
        rounded = np.asarray(number).astype(held.dtype).astype(np.float64)
    return bool(abs(float(held) - rounded) <= SAME * abs(rounded))
