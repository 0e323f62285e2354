"""Where ONNX Runtime will place each node, predicted from its kernel tables as its partitioner decides.

A provider gets the nodes that it has kernels for. Short chains that only compute shapes then go to the processor,
because their inputs are there already. Where a tensor crosses between device and processor, a Memcpy node is put in.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import onnx_ir as ir

from truecast.diagnosis.bodies import is_stale, parts_of
from truecast.diagnosis.inference import Types, clashing_dtypes, infer_types, node_types, type_name
from truecast.diagnosis.kernels import CUDA, Kernels
from truecast.diagnosis.schemas import find_schema, is_function

SMALL_INITIALIZER = 100
"""Elements up to which ONNX Runtime counts an initializer as free to be on the processor."""
ACROSS: frozenset[ir.DataType] = frozenset(
    {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2}
)
"""Dtypes that keep a node on the device although its inputs are on the processor."""
REDUCTIONS = ("Max", "Mean", "Min", "Prod", "Sum", "SumSquare", "L1", "L2", "LogSum", "LogSumExp")
HOST_INPUTS: Mapping[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Dropout": (1, 2),
    "Expand": (1,),
    "GroupQueryAttention": (6,),
    "If": (0,),
    "Loop": (0, 1),
    "NonMaxSuppression": (2, 3, 4),
    "OneHot": (1, 2),
    "Pad": (1, 2, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
} | {f"Reduce{kind}": (1,) for kind in REDUCTIONS}
"""Inputs that CUDA's kernels read on the processor: sizes, axes and bounds."""
HOST_OUTPUTS = frozenset({"Shape", "Size"})
"""Operators whose CUDA kernels leave their result on the processor."""
NEVER_FOLDED = frozenset(
    {
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
        "DequantizeLinear",
        "QuantizeLinear",
        "Dropout",
    }
)
"""Operators with constant inputs that ONNX Runtime still runs: random ones, and quantization that it may fuse."""
REFUSED_ATTRIBUTES: Mapping[str, tuple[str, int]] = {
    "ArgMax": ("select_last_index", 1),
    "ArgMin": ("select_last_index", 1),
    "GRU": ("linear_before_reset", 0),
}
"""Values of attributes with which CUDA's kernels do not take a node, seen in sessions."""
RENAMED = frozenset({"CastLike"})
"""Operators without kernels that become exactly one other operator, which every provider has."""
LAYER = re.compile(r"(?:^|[./_])(?:layers?|blocks?|h|encoder|decoder)[./_](\d+)(?=[./_]|$)")
REPEATED = 3
"""Copies between the same two operators, in a graph without layer names, that are taken for growth with depth."""


class Place(StrEnum):
    """Where a node runs."""

    DEVICE = "device"
    HOST = "processor, since the provider has no kernel"
    PREFERRED = "processor, because it computes shapes"
    EXPANDED = "device, as its parts"
    CAST = "processor, in float32 between casts"
    FOLDED = "nowhere: it is computed at load"
    NOWHERE = "nowhere: there is no kernel"
    UNKNOWN = "unknown: the operator is not known, or its dtypes clash"


@dataclass(frozen=True)
class Copy:
    """One Memcpy node: the value that crosses, from the node that makes it to those that read it."""

    value: ir.Value
    to_host: bool
    readers: tuple[ir.Node, ...]

    @property
    def signature(self) -> tuple[str, ...]:
        """The operators at both ends."""
        producer = self.value.producer()
        return (producer.op_type if producer else "input", *sorted({node.op_type for node in self.readers}))

    @property
    def layer(self) -> str | None:
        """The number of the layer it is in, by the names of the nodes around it."""
        producer = self.value.producer()
        around = [*self.readers, *([producer] if producer is not None else [])]
        return next((index for node in around if (index := layer_of(node)) is not None), None)


@dataclass(frozen=True)
class Placement:
    """The place of every node and the copies between device and processor."""

    places: Mapping[ir.Node, Place]
    copies: tuple[Copy, ...]

    def at(self, *places: Place) -> list[ir.Node]:
        """The nodes in those places."""
        return [node for node, place in self.places.items() if place in places]

    @property
    def growing(self) -> bool:
        """Whether the copies repeat layer by layer, so that a deeper model has more of them."""
        layers = {copy.layer for copy in self.copies} - {None}
        if layers:
            return len(layers) > 1
        repeats = Counter(copy.signature for copy in self.copies)
        return max(repeats.values(), default=0) >= REPEATED


def layer_of(node: ir.Node) -> str | None:
    """The number of the layer that a node belongs to, by its own name, its scope, or its weights' names."""
    names = [node.name or "", node.metadata_props.get("namespace", "")]
    names += [value.name or "" for value in node.inputs if value is not None]
    return next((match.group(1) for name in names if (match := LAYER.search(name))), None)


def find_constants(nodes: Sequence[ir.Node], graph: ir.Graph, is_static: Callable[[ir.Value], bool]) -> set[ir.Value]:
    """Values that do not depend on any input, sizes of static shapes too: what ONNX Runtime computes once, at load."""
    inputs = set(graph.inputs)
    constants = {value for value in graph.initializers.values() if value not in inputs}
    for node in nodes:
        if node.op_type in NEVER_FOLDED or any(
            attr.type == ir.AttributeType.GRAPH for attr in node.attributes.values()
        ):
            continue
        measures = node.op_type in HOST_OUTPUTS and node.inputs[0] is not None and is_static(node.inputs[0])
        if measures or all(value is None or value in constants or _is_initializer(value) for value in node.inputs):
            constants.update(node.outputs)
    return constants


def _is_initializer(value: ir.Value) -> bool:
    return value.const_value is not None and not value.is_graph_input()


def place(
    nodes: Sequence[ir.Node],
    opsets: Mapping[str, int],
    types: Types,
    tables: Sequence[Kernels],
    constants: set[ir.Value],
) -> Placement:
    """Predicts the place of every node; `tables` are tried in turn, the processor's last."""
    places = {node: _first_place(node, opsets, types, tables, constants) for node in nodes}
    if tables[0].provider != CUDA:
        return Placement(places, ())
    for node in _preferred(nodes, places, types, constants):
        places[node] = Place.PREFERRED
    return Placement(places, tuple(_copies(nodes, places, constants)))


def _first_place(
    node: ir.Node, opsets: Mapping[str, int], types: Types, tables: Sequence[Kernels], constants: set[ir.Value]
) -> Place:
    if node.outputs and all(value in constants for value in node.outputs):
        return Place.FOLDED
    schema = find_schema(node, opsets)
    if schema is None:
        return Place.UNKNOWN
    if node.op_type in RENAMED:
        return Place.DEVICE
    held = node_types(node, schema, types)
    if clashing_dtypes(schema, held):
        return Place.UNKNOWN
    for table in tables:
        if table.has(schema, held) and not (table.provider == CUDA and refused_attribute(node)):
            return Place.DEVICE if table is tables[0] else Place.HOST
    has_body = is_function(schema.domain, schema.name, schema.since) and not _needs_bfloat16(held, tables)
    if has_body and _parts_run(node, opsets, types, tables):
        return Place.EXPANDED
    widened = {key: frozenset(_widened(name) for name in names) for key, names in held.items()}
    if widened != held and tables[-1].has(schema, widened):
        return Place.CAST
    return Place.NOWHERE


def _parts_run(node: ir.Node, opsets: Mapping[str, int], types: Types, tables: Sequence[Kernels]) -> bool:
    """Whether there are kernels for all parts of an operator; parts that are not known here count as run."""
    parts = parts_of(node, opsets, types)
    if parts is None:
        return True
    if is_stale(node, parts, opsets.get("", 1)):
        return False
    inner, constants = infer_types(parts, opsets), find_constants(parts, parts, lambda value: False)
    return all(_first_place(part, opsets, inner, tables, constants) is not Place.NOWHERE for part in parts)


def refused_attribute(node: ir.Node) -> tuple[str, int] | None:
    """The attribute for which CUDA leaves a node to the processor, although a kernel is registered, and its value."""
    refused = REFUSED_ATTRIBUTES.get(node.op_type)
    return refused if refused is not None and node.attributes.get_int(refused[0], 0) == refused[1] else None


def _needs_bfloat16(held: Mapping[str, frozenset[str]], tables: Sequence[Kernels]) -> bool:
    """Whether the parts of an operator would need arithmetic in bfloat16, for which the processor has no kernels."""
    return len(tables) == 1 and any("tensor(bfloat16)" in names for names in held.values())


def _widened(name: str) -> str:
    return type_name(ir.DataType.FLOAT) if name == type_name(ir.DataType.FLOAT16) else name


def _preferred(
    nodes: Sequence[ir.Node], places: Mapping[ir.Node, Place], types: Types, constants: set[ir.Value]
) -> set[ir.Node]:
    """Nodes of the device whose inputs are all on the processor already: ONNX Runtime runs them there."""
    order = {node: index for index, node in enumerate(nodes)}
    on_host: set[ir.Value] = set()
    waiting: list[int] = []
    for node in nodes:
        if node.op_type in HOST_OUTPUTS and places[node] is Place.DEVICE:
            on_host.update(node.outputs)
            waiting += [order[reader] for value in node.outputs for reader in value.consumers() if reader in order]
    heapq.heapify(waiting)
    chosen: set[ir.Node] = set()
    seen: set[int] = set()
    while waiting:
        index = heapq.heappop(waiting)
        node = nodes[index]
        if index in seen or places[node] is not Place.DEVICE:
            continue
        seen.add(index)
        free = (value is None or _is_free(value, constants) for value in node.inputs)
        held = (value in on_host and i not in _host_inputs(node) for i, value in enumerate(node.inputs))
        if all(map(any, zip(free, held, strict=True))) and not any(types.get(v) in ACROSS for v in node.inputs if v):
            chosen.add(node)
            on_host.update(node.outputs)
            for reader in (reader for value in node.outputs for reader in value.consumers() if reader in order):
                heapq.heappush(waiting, order[reader])
    return chosen


def _is_free(value: ir.Value, constants: set[ir.Value]) -> bool:
    """Whether ONNX Runtime lets a value be on the processor at no cost: an input of the graph, or a small constant."""
    tensor = ir.convenience.get_const_tensor(value)
    small = tensor is None or tensor.size <= SMALL_INITIALIZER
    return (value.is_graph_input() and tensor is None) or (small and (tensor is not None or value in constants))


def _host_inputs(node: ir.Node) -> tuple[int, ...]:
    return HOST_INPUTS.get(node.op_type, ())


def _copies(nodes: Sequence[ir.Node], places: Mapping[ir.Node, Place], constants: set[ir.Value]) -> list[Copy]:
    """One copy for each value and direction, as ONNX Runtime inserts them; weights are placed once, without a copy."""
    readers: dict[tuple[ir.Value, bool], list[ir.Node]] = defaultdict(list)
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is not None and value not in constants and places[node] is not Place.FOLDED:
                readers[value, _on_device(node, places) and index not in _host_inputs(node)].append(node)
    copies = []
    for (value, on_device), found in readers.items():
        producer = value.producer()
        if producer is None:
            if on_device and (value, False) in readers:
                copies.append(Copy(value, False, tuple(found)))
        elif places.get(producer) is not Place.FOLDED:
            made = _on_device(producer, places) and producer.op_type not in HOST_OUTPUTS
            if made is not on_device:
                copies.append(Copy(value, made, tuple(found)))
    return copies


def _on_device(node: ir.Node, places: Mapping[ir.Node, Place]) -> bool:
    return places.get(node) in (Place.DEVICE, Place.EXPANDED)
