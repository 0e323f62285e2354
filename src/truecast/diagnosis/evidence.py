"""What the rules look at: the graph, and what follows from it, computed when a rule first asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir

from truecast.diagnosis.host import Host
from truecast.diagnosis.inference import Dim, Shapes, infer_shapes, infer_types
from truecast.diagnosis.kernels import Kernels, tables_for
from truecast.diagnosis.loading import ExternalData, external_data
from truecast.diagnosis.observing import Observed
from truecast.diagnosis.placement import Placement, find_constants, place
from truecast.diagnosis.schemas import Schema, find_schema, standard
from truecast.diagnosis.stored import SMALL_ELEMENTS, SMALLEST_BYTES, Weight, same_weights, weights_of

ANNOTATION = "quant_parameter_tensor_names"
"""Where onnx-ir keeps the names of a quantization annotation."""
DROPOUT_INPUTS = 3


@dataclass(frozen=True)
class Settings:
    """What is set for the session, with the place where each was found: session keys and the providers asked for."""

    entries: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    providers: Mapping[str, str] = field(default_factory=dict)
    """The provider's name in lower case → the file that asks for it."""
    threads: int | None = None


@dataclass(frozen=True)
class Evidence:
    """One model on one provider; `observed` is what a real session did, when one was run."""

    path: Path
    model: ir.Model
    provider: str = "cpu"
    settings: Settings = field(default_factory=Settings)
    host: Host = field(default_factory=Host)
    observed: Observed | None = None

    @property
    def graph(self) -> ir.Graph:
        """The main graph."""
        return self.model.graph

    @cached_property
    def opsets(self) -> Mapping[str, int]:
        """Version of each operator domain; ONNX's own is ""."""
        return {standard(domain): version for domain, version in self.model.opset_imports.items()}

    @cached_property
    def nodes(self) -> tuple[ir.Node, ...]:
        """Every node in the order of execution, those of subgraphs after the node that holds them."""
        return tuple(ir.traversal.RecursiveGraphIterator(self.graph))

    @cached_property
    def external(self) -> tuple[ExternalData, ...]:
        """Initializers in other files."""
        return tuple(external_data(self.model, self.path.parent))

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """Every initializer with a value."""
        return tuple(weights_of(self.model, {data.name: data for data in self.external}))

    @cached_property
    def weight_of(self) -> Mapping[ir.Value, Weight]:
        """The weight that a value is."""
        return {weight.value: weight for weight in self.weights}

    @cached_property
    def equal_weights(self) -> tuple[tuple[Weight, ...], ...]:
        """Groups of weights with the same dtype, shape and bytes that are stored more than once."""
        return tuple(same_weights(self.weights))

    @cached_property
    def annotated(self) -> frozenset[str]:
        """Names that quantization annotations of the graphs hold: scales and zero points that no node need read."""
        values = [v for g in (self.graph, *self.graph.subgraphs()) for v in (*g.inputs, *g.initializers.values())]
        values += [value for node in self.nodes for value in node.outputs]
        return frozenset(name for value in values for name in value.meta.get(ANNOTATION, {}).values())

    @cached_property
    def idle_weights(self) -> tuple[Weight, ...]:
        """Weights worth a word that no node reads, no annotation names, and the graph neither takes nor returns."""
        return tuple(
            weight
            for weight in self.weights
            if weight.nbytes >= SMALLEST_BYTES
            and not (weight.value.uses() or weight.value.is_graph_output() or weight.value.is_graph_input())
            and weight.name not in self.annotated
        )

    @cached_property
    def training_nodes(self) -> tuple[ir.Node, ...]:
        """Nodes that behave as in training: dropout, or a batch norm that uses the batch's own statistics."""
        return tuple(node for node in self.nodes if self._is_training(node))

    def _is_training(self, node: ir.Node) -> bool:
        if node.op_type == "BatchNormalization":
            return bool(node.attributes.get_int("training_mode", 0))
        if node.op_type != "Dropout" or len(node.inputs) < DROPOUT_INPUTS:
            return False
        mode, ratio = self.values(node.inputs[2]), self.values(node.inputs[1])
        drops = ratio is None or bool(np.any(ratio > 0))
        return mode is not None and bool(np.all(mode)) and drops

    @cached_property
    def types(self) -> Mapping[ir.Value, ir.DataType]:
        """The dtype of each value, where it is known."""
        return infer_types(self.nodes, self.opsets)

    @cached_property
    def shapes(self) -> Shapes:
        """Inferred shapes."""
        return infer_shapes(self.model)

    @cached_property
    def constants(self) -> set[ir.Value]:
        """Values that depend on no input."""
        return find_constants(self.nodes, self.graph, self._is_static)

    def _is_static(self, value: ir.Value) -> bool:
        dims = self.dims(value)
        return dims is not None and all(isinstance(dim, int) for dim in dims)

    @cached_property
    def tables(self) -> tuple[Kernels, ...]:
        """The kernels of the provider and of those behind it; empty when there is no table."""
        return tables_for(self.provider)

    @cached_property
    def placement(self) -> Placement:
        """Where each node will run; nothing is said when there is no table for the provider."""
        if not self.tables:
            return Placement({}, ())
        return place(self.nodes, self.opsets, self.types, self.tables, self.constants)

    def schema(self, node: ir.Node) -> Schema | None:
        """The runtime's schema of a node."""
        return find_schema(node, self.opsets)

    def dims(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """The shape of a value: a weight's, the inferred one, or the declared one; None when its rank is unknown."""
        if value is None:
            return None
        if value.const_value is not None:
            return tuple(int(size) for size in value.const_value.shape.numpy())
        inferred = self.shapes.by_name.get(value.name or "")
        declared = (
            None if value.shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
        )
        return inferred if inferred is not None else declared

    def values(self, value: ir.Value | None) -> np.ndarray | None:
        """The elements of a small constant; None for anything else, or where it may not be read."""
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        if value is None or tensor is None or tensor.size > SMALL_ELEMENTS or value.is_graph_input():
            return None
        weight = self.weight_of.get(value)
        return np.asarray(tensor.numpy()) if weight is None or weight.readable else None


def label(node: ir.Node) -> str:
    """A node's operator and name, as findings list it."""
    return f"{node.op_type} {node.name}" if node.name else f"{node.op_type} → {node.outputs[0].name}"
