"""Cutting a graph into pieces that are each run on the reference's own numbers.

Data flow: values of the graph that the author's model knows by name (a module's output, a product's input, what
attention takes and gives) are cut: whoever reads such a value gets the reference's instead, and the value itself
becomes an output. So one run of the cut graph shows every piece's own error; none inherits those of the pieces before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from truecast.artifact import GraphInfo
from truecast.proof.feeds import run_feeds
from truecast.proof.operators import Array
from truecast.proof.points import Point
from truecast.proof.recording import AttentionRecord, Recording
from truecast.runtime.cache import cache_tensors, empty_state
from truecast.states import StateTensor

GIVEN = "given:"
"""Prefix of the inputs that replace cut values."""
PRODUCTS = frozenset({"MatMul", "MatMulNBits", "MatMulBnb4", "FusedMatMul", "Gemm"})
TOGETHER = "+"
"""Joins the names of modules whose products were made one: `layers.0.self_attn.q_proj+k_proj+v_proj`."""


@dataclass(frozen=True)
class Cut:
    """A value of the graph and what the author's model has for it; `about` says what it is, for people."""

    value: str
    want: Array
    about: str
    layer: int | None = None


def find_cuts(model: ir.Model, recording: Recording, head: str) -> list[Cut]:
    """Every value that the recording knows, in the order of the graph; `head` is the module that gives the logits."""
    cuts: dict[str, Cut] = {}
    attention = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    records = dict(zip(sorted(map(layer_of_attention, attention)), recording.attention, strict=False))
    for node in model.graph:
        if node in attention:
            _attention_cuts(node, records.get(layer_of_attention(node)), cuts)
            continue
        for value in node.outputs:
            _module_cut(value, node, recording, head, cuts)
    order = {value.name: place for place, value in enumerate(v for node in model.graph for v in node.outputs)}
    return sorted(cuts.values(), key=lambda cut: order[cut.value])


def module_of(value: ir.Value, head: str) -> str:
    """The module whose output a value is by its name; norms are also known by the parameter that scales them."""
    node, name = value.producer(), value.name or ""
    if name == "logits":
        return head
    if (
        node is not None
        and node.op_type.endswith("LayerNormalization")
        and len(node.inputs) > 1
        and value is node.outputs[0]
    ):
        return _owner(node.inputs[1]) or name
    return name


def _owner(value: ir.Value | None) -> str:
    """The module that owns the only parameter a value is made of."""
    seen: set[str] = set()
    stack = [value]
    while stack:
        current = stack.pop()
        if current is None:
            continue
        producer = current.producer()
        if producer is not None:
            stack.extend(producer.inputs)
        elif current.is_initializer() and (current.name or "").endswith(".weight"):
            seen.add((current.name or "").removesuffix(".weight"))
        elif not current.is_initializer():
            return ""
    return seen.pop() if len(seen) == 1 else ""


def _recorded(arrays: Mapping[str, Array], name: str) -> Array | None:
    if name in arrays or TOGETHER not in name:
        return arrays.get(name)
    first, *others = name.split(TOGETHER)
    stem = first.rpartition(".")[0]
    parts = [arrays.get(part) for part in (first, *(f"{stem}.{other}" for other in others))]
    return None if any(part is None for part in parts) else np.concatenate(parts, -1)  # type: ignore[arg-type]


def _module_cut(value: ir.Value, node: ir.Node, recording: Recording, head: str, cuts: dict[str, Cut]) -> None:
    module = module_of(value, head)
    want = _recorded(recording.outputs, module)
    if want is None or value.name is None:
        return
    cuts.setdefault(value.name, Cut(value.name, want, f"the output of {module}"))
    product = node if node.op_type in PRODUCTS else _product_below(node)
    given = _recorded(recording.inputs, module.split(TOGETHER)[0])
    source = None if product is None else _in_author_order(product.inputs[0])
    if source is not None and source.producer() is not None and source.name is not None and given is not None:
        cuts.setdefault(source.name, Cut(source.name, given, f"the input of {module}"))


def _in_author_order(value: ir.Value | None) -> ir.Value | None:
    """What a product is fed, before its columns were put into the order of the codes."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Gather" and node.attributes.get_int("axis", 0) == -1:
        return node.inputs[0]
    return value


def _product_below(node: ir.Node) -> ir.Node | None:
    """The product under a bias."""
    if node.op_type != "Add":
        return None
    producers = [value.producer() for value in node.inputs if value is not None]
    return next((p for p in producers if p is not None and p.op_type in PRODUCTS), None)


def layer_of_attention(node: ir.Node) -> int:
    """The layer whose cache an attention operator reads."""
    past = node.inputs[3]
    assert past is not None and past.name is not None
    return int(past.name.split(".")[1])


def _attention_cuts(node: ir.Node, record: AttentionRecord | None, cuts: dict[str, Cut]) -> None:
    if record is None:
        return
    layer, output = layer_of_attention(node), node.outputs[0]
    assert output.name is not None
    flat = record.output.reshape(*record.output.shape[:2], -1)
    cuts[output.name] = Cut(output.name, flat, f"attention of layer {layer}", layer)
    if node.inputs[1] is None or node.attributes.get("do_rotary") is not None:
        return  # the operator rotates by itself: what it takes is not what the author's function takes
    new = record.query.shape[2]
    states = {"queries": record.query, "keys": record.key, "values": record.value}
    for value, (what, array) in zip(node.inputs[:3], states.items(), strict=True):
        if value is None or value.producer() is None or value.name is None:
            continue
        moved = array[:, :, -new:].transpose(0, 2, 1, 3)
        flat = moved.reshape(*moved.shape[:2], -1)
        cuts.setdefault(value.name, Cut(value.name, flat, f"{what} of layer {layer}", layer))


def fitted(array: Array, shape: Sequence[int], like: Array) -> Array | None:
    """`array` in the layout that the graph has: as it is, with heads and positions swapped, or flattened.

    Where several layouts have the right shape, the one nearest to `like` (what the graph itself gives) is taken.
    """
    candidates = [array]
    if array.ndim == 4:
        swapped = array.transpose(0, 2, 1, 3)
        candidates += [swapped, swapped.reshape(*swapped.shape[:2], -1), array.reshape(*array.shape[:2], -1)]
    elif array.ndim == 3:
        candidates.append(array.reshape(-1, array.shape[-1]))
    fitting = [c for c in candidates if c.shape == tuple(shape)]
    if not fitting:
        same = [c for c in candidates if c.size == int(np.prod(shape))]
        fitting = [c.reshape(tuple(shape)) for c in same[:2]]
    return min(fitting, key=lambda c: float(np.abs(c - like).mean()), default=None)


def feeds(
    model: ir.Model, info: GraphInfo, point: Point, run_number: int, past: Mapping[StateTensor, Array]
) -> dict[str, Any]:
    """Everything the graph takes for one run of a point, with the reference's cache; logits of every position."""
    fed = run_feeds(info, point, list(point.runs())[run_number])
    for state in cache_tensors(info):
        held = past.get(StateTensor(state.layer, state.part))
        fed[state.past] = empty_state(state, point.batch, 0) if held is None else held.astype(state.dtype)
    taken = {value.name for value in model.graph.inputs}
    return {name: array for name, array in fed.items() if name in taken}


def tapped(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of the graph that gives the named values and nothing else."""
    copy = model.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs[:] = [values[name] for name in names]
    return copy


def cut(model: ir.Model, given: Mapping[str, Array]) -> ir.Model:
    """A copy of the graph that gives the named values, and whose other nodes read `GIVEN` inputs in their place."""
    copy = tapped(model, [])
    values = {value.name: value for node in copy.graph for value in node.outputs}
    for name, array in given.items():
        dtype = ir.DataType.from_numpy(array.dtype)
        replacement = ir.Value(name=GIVEN + name, shape=ir.Shape([None] * array.ndim), type=ir.TensorType(dtype))
        copy.graph.inputs.append(replacement)
        ir.convenience.replace_all_uses_with(values[name], replacement)
    copy.graph.outputs[:] = [values[name] for name in given]
    return copy


def piece(model: ir.Model, value: str) -> list[ir.Node]:
    """The nodes of a cut graph that make `value`, in order; constants left out."""
    made = {v.name: v for node in model.graph for v in node.outputs}
    found: set[ir.Node] = set()
    stack = [made[value]]
    while stack:
        node = stack.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            stack.extend(v for v in node.inputs if v is not None)
    return [node for node in model.graph if node in found and node.op_type != "Constant"]


def initializers_of(nodes: Sequence[ir.Node]) -> Iterator[str]:
    """Names of the initializers that the nodes read."""
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.is_initializer() and value.name:
                yield value.name
