"""Changes to a file that cannot change a result: what can be mended of a finding, and how it is written.

Data flow: what a rule found → the `Change`s that are possible, which is what a finding promises → the file's own
message with just these changes. All else in it stays as it was: names, order, functions, annotations.

Left alone are inputs and outputs of the graph, initializers that a caller can feed, what a quantization annotation
names, sparse tensors, and everything inside branches, loops and functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from truecast.diagnosis.evidence import Evidence
from truecast.diagnosis.loading import FIRST_OVERRIDABLE_IR, is_written
from truecast.diagnosis.sparse import graphs_in
from truecast.diagnosis.stored import Weight

MODE = 2
"""Input of Dropout that switches it on; without it, it is off."""


@dataclass(frozen=True)
class Change:
    """One change: the weight `name` goes, and its readers read `instead`, if any does; or a Dropout is switched off.

    `dropout` is the name of the first output of such a node.
    """

    name: str = ""
    instead: str = ""
    dropout: str = ""


def merges(evidence: Evidence) -> tuple[Change, ...]:
    """Equal weights of which all but one can go; those that share a range of a file are stored once already."""
    changes: list[Change] = []
    for group in evidence.equal_weights:
        free = [weight for weight in group if _is_free(weight, evidence)]
        kept = next((weight for weight in free if weight.value.is_graph_output()), (free or group)[0])
        others = (w for w in free if w.place != kept.place and not w.value.is_graph_output())
        changes += [Change(weight.name, kept.name) for weight in others if kept in free]
    return tuple(changes)


def removals(evidence: Evidence) -> tuple[Change, ...]:
    """Weights that nothing reads and that can go."""
    return tuple(Change(weight.name) for weight in evidence.idle_weights if _is_free(weight, evidence))


def switches(evidence: Evidence) -> tuple[Change, ...]:
    """Dropout nodes in training mode; a batch norm that uses the batch's statistics has other results without them."""
    nodes = (node for node in evidence.training_nodes if node.op_type == "Dropout" and is_written(node))
    return tuple(Change(dropout=node.outputs[0].name or "") for node in nodes)


def _is_free(weight: Weight, evidence: Evidence) -> bool:
    """Whether a weight is an initializer or Constant of the main graph that nobody else may name."""
    here = weight.value.graph is evidence.graph and not weight.value.is_graph_input()
    return here and not isinstance(weight.tensor, ir.LazyTensor) and weight.name not in evidence.annotated


def apply(model: onnx.ModelProto, changes: Iterable[Change]) -> None:
    """Makes the changes in the message."""
    graph = model.graph
    for change in changes:
        if change.dropout:
            node = next(node for node in graph.node if change.dropout in node.output)
            del node.input[MODE:]
            continue
        if change.instead:
            _rename(graph, change.name, change.instead)
        _remove(graph.initializer, [tensor for tensor in graph.initializer if tensor.name == change.name])
        _remove(graph.node, [n for n in graph.node if n.op_type == "Constant" and change.name in n.output])
        _remove(graph.value_info, [info for info in graph.value_info if info.name == change.name])
        if model.ir_version < FIRST_OVERRIDABLE_IR:  # where every initializer had to be an input too
            _remove(graph.input, [value for value in graph.input if value.name == change.name])


def _remove(fields: object, going: Sequence[object]) -> None:
    for each in going:
        fields.remove(each)  # type: ignore[attr-defined]


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Lets every node that reads `old`, those of inner graphs too, read `new`."""
    for node in (node for inner in graphs_in(graph) for node in inner.node):
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def undropped(model: onnx.ModelProto, evidence: Evidence) -> onnx.ModelProto:
    """The model with ratios of zero: in training mode too nothing is dropped, as in the mended model."""
    ratios = {node.outputs[0].name: node.inputs[1] for node in evidence.training_nodes if node.op_type == "Dropout"}
    for name, value in ratios.items():
        node = next((node for node in model.graph.node if name in node.output), None)
        if node is not None and value is not None:
            dtype = evidence.types.get(value, ir.DataType.FLOAT)
            zero = onnx.helper.make_tensor("", int(dtype), [], [0])
            constant = onnx.helper.make_node("Constant", [], [f"{name}/ratio"], value=zero)
            node.input[1] = constant.output[0]
            model.graph.node.insert(0, constant)
    return model


def external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the message whose bytes lie in another file."""
    for graph in graphs_in(model.graph):
        held = [a.t for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
        yield from (t for t in (*graph.initializer, *held) if t.data_location == onnx.TensorProto.EXTERNAL)
