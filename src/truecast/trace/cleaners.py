"""Clean-up by other libraries, each an explicit choice: what they rewrite beyond `cleanup.clean`.

Data flow: a graph whose weights are written → its weights become inputs, so that a library can neither fold, merge nor
change one → the library rewrites the rest → the weights are initializers again, with the same names and places on disk.

A whole MiniLM-L6 gives the same nodes with onnxscript and onnxslim as one without its weights. onnxsim 0.8 makes 321
nodes of 261 from the whole one (Gemm between Reshapes) and 225 without the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from truecast.errors import InputError
from truecast.trace.cleanup import forget_inner_shapes
from truecast.trace.naming import canonical

NONE = "none"
"""Only truecast's own clean-up."""
LARGEST_FOLDED = 1 << 16
"""Bytes of a constant that a library may compute; a larger one costs more on disk than it saves in a run."""
ELEMENT_BYTES = 8
"""Of the widest dtype, where a library counts elements."""

Rewrite = Callable[[Any, onnx.ModelProto], onnx.ModelProto]


@dataclass(frozen=True)
class Cleaner:
    """A library: the module that is imported, and how it is asked to rewrite a model that holds no weights."""

    module: str
    rewrite: Rewrite

    @property
    def package(self) -> str:
        """What is installed, and truecast's extra of that name."""
        return self.module.partition(".")[0]


@dataclass(frozen=True)
class Cleaned:
    """A rewritten graph, and what the manifest says of it."""

    model: ir.Model
    record: Mapping[str, str | int]


def _onnxscript(library: Any, model: onnx.ModelProto) -> onnx.ModelProto:
    result: onnx.ModelProto = library.optimize(model, output_size_limit=LARGEST_FOLDED // ELEMENT_BYTES)
    return result


def _onnxslim(library: Any, model: onnx.ModelProto) -> onnx.ModelProto:
    """Without its own inference of shapes: from a table of positions, onnxslim 0.1.98 fixes the length of inputs."""
    result: onnx.ModelProto = library.slim(model, no_shape_infer=True, size_threshold=LARGEST_FOLDED)
    return result


def _onnxsim(library: Any, model: onnx.ModelProto) -> onnx.ModelProto:
    result, done = library.simplify(model, tensor_size_threshold=f"{LARGEST_FOLDED >> 10}KB", certify=False)
    if not done:
        raise ValueError("it reports no success")
    simplified: onnx.ModelProto = result
    return simplified


CLEANERS: Mapping[str, Cleaner] = MappingProxyType(
    {
        "onnxscript": Cleaner("onnxscript.optimizer", _onnxscript),
        "onnxslim": Cleaner("onnxslim", _onnxslim),
        "onnxsim": Cleaner("onnxsim", _onnxsim),
    }
)
CLEAN_UPS = (NONE, *CLEANERS)


def require_cleaner(name: str) -> None:
    """Raises InputError when the library of a clean-up is not installed."""
    if name != NONE and find_spec(CLEANERS[name].package) is None:
        package = CLEANERS[name].package
        raise InputError(
            f"--clean-up {name} needs {package}, which is not installed; run: pip install 'truecast[{package}]'."
        )


def cleaned(model: ir.Model, name: str) -> Cleaned:
    """A graph as the library `name` rewrites it; its weights, which lie in other files, stay where they are.

    Raises InputError when the library cannot rewrite this graph.
    """
    cleaner = CLEANERS[name]
    release = version(cleaner.package)
    weights = {
        key: value
        for key, value in model.graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    try:
        rewritten = cleaner.rewrite(import_module(cleaner.module), _without(model, weights))
        result = ir.from_proto(rewritten)
    except Exception as error:  # whatever the library raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"{cleaner.package} {release} cannot rewrite this graph ({reason}); choose another --clean-up, or {NONE}."
        ) from error
    _give_back(result, weights)
    _constants_as_nodes(result.graph, set(model.graph.initializers))
    forget_inner_shapes(result.graph)
    canonical(result)
    record = {"library": cleaner.package, "version": release}
    return Cleaned(result, record | {"nodes_before": len(model.graph), "nodes_after": len(result.graph)})


def _without(model: ir.Model, weights: Mapping[str, ir.Value]) -> onnx.ModelProto:
    """The model with inputs in place of its weights, and every constant a tensor.

    onnxslim 0.1.98 reads a Constant's `value_int` and `value_ints` as float64.
    """
    lifted = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model.clone()).model
    proto: onnx.ModelProto = ir.to_proto(lifted)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in weights]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    for name, value in weights.items():
        assert value.const_value is not None
        shape = list(value.const_value.shape.numpy())
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, int(value.const_value.dtype), shape))
    return proto


def _give_back(model: ir.Model, weights: Mapping[str, ir.Value]) -> None:
    """Makes the inputs that stood for weights initializers again; one that the library dropped stays dropped."""
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        tensor = weights[value.name or ""].const_value
        value.const_value = tensor
        model.graph.initializers.add(value)


def _constants_as_nodes(graph: ir.Graph, known: AbstractSet[str]) -> None:
    """Small constants become nodes, as they were; initializers that were there before, `known`, stay what they are."""
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if name in known or tensor is None or tensor.nbytes > LARGEST_FOLDED:
            continue
        node = ir.node("Constant", [], {"value": tensor})
        graph.insert_before(graph[0], node)
        ir.convenience.replace_all_uses_with(value, node.outputs[0], replace_graph_outputs=True)
        del graph.initializers[name]
