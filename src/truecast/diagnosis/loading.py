"""Reads an ONNX file without its weights.

External data stays on disk and is mapped only when a rule reads some of it; a tensor whose file lies outside the
model's folder is never opened.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from truecast.artifact import MANIFEST_NAME, read_manifest
from truecast.diagnosis.damage import damages, node_damages
from truecast.diagnosis.sparse import graphs_in, put_back, set_apart
from truecast.errors import InputError

PROTOBUF_LIMIT = (1 << 31) - 1
"""Bytes that one protobuf message can have."""
FIRST_OVERRIDABLE_IR = 4
"""IR version from which an initializer that is an input too can be fed, and one that is none is a constant."""
WRITTEN = "written"
UNREADABLE = (ValueError, TypeError, KeyError, ir.serde.SerdeError, ir.passes.PreconditionError)
"""What onnx-ir raises for a graph that is none: cycles among nodes or functions, names made twice, unknown types."""


@dataclass(frozen=True)
class ExternalData:
    """Where one initializer's bytes lie: the file as written in the model, and its range of bytes."""

    name: str
    location: str
    folder: Path
    offset: int
    length: int | None

    @property
    def path(self) -> Path:
        """The file, not followed."""
        return self.folder / self.location

    @property
    def inside(self) -> bool:
        """Whether the path is relative and the file lies in the model's folder, also after following links."""
        if "\0" in self.location:  # no path at all
            return False
        return not Path(self.location).is_absolute() and self.path.resolve().is_relative_to(self.folder.resolve())


def find_graph(path: Path) -> Path:
    """The ONNX file that `path` means: itself, an artifact's graph, or the only one of a folder."""
    if not path.exists():
        raise InputError(f"{path} does not exist; give an ONNX file or a folder with one.")
    if not path.is_dir():
        return path
    if (path / MANIFEST_NAME).is_file():
        return path / read_manifest(path).graph.file
    found = sorted(path.glob("*.onnx"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:5]) or "none"
        raise InputError(f"{path} holds {len(found)} ONNX files ({names}); name the one to look at.")
    return found[0]


def read_model(file: Path) -> ir.Model:
    """The model with its functions inlined, and its weights where they are; raises InputError when it is none."""
    if not file.is_file():
        raise InputError(f"{file} does not exist; give an ONNX file or a folder with one.")
    size = file.stat().st_size
    if size > PROTOBUF_LIMIT:
        raise InputError(f"{file} has {size} bytes and an ONNX file can have 2 GiB; save its weights as external data.")
    if size == 0:
        raise InputError(f"{file} is empty; write the model again.")
    model = _parsed(file)
    if not model.graph.outputs or not model.opset_imports:
        raise InputError(f"{file} is no ONNX model: it has no graph with outputs; give the file that the export wrote.")
    if damage := next(chain(_unmade(model), node_damages(_nodes(model), model.opset_imports)), None):
        raise InputError(f"{file} is damaged: {damage}; export or download it again.")
    return model


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    return ir.traversal.RecursiveGraphIterator(model.graph)


def _unmade(model: ir.Model) -> Iterator[str]:
    """A phrase for each value that is read or returned and that nothing makes."""
    readers = [
        (f"{node.op_type} {node.name or ''}".strip(), value)
        for node in model.graph.all_nodes()
        for value in node.inputs
    ]
    for reader, value in (*readers, *(("the graph's result", value) for value in model.graph.outputs)):
        if value is None or value.producer() is not None or value.is_graph_input() or value.is_initializer():
            continue
        yield f"{reader} is made of {value.name}, which nothing makes"


def _parsed(file: Path) -> ir.Model:
    try:
        proto = onnx.load_model(file, format="protobuf", load_external_data=False)
        if damage := next(damages(proto.graph), None):
            raise InputError(f"{file} is damaged: {damage}; export or download it again.")
        model = _read(proto)
    except RecursionError as error:
        raise InputError(f"{file} is damaged: its graphs are nested too deeply; export it again.") from error
    except (DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no ONNX model or is cut short ({error}); write it again.") from error
    except UNREADABLE as error:
        raise InputError(f"{file} holds no valid ONNX graph ({_reason(error)}); export it again.") from error
    ir.external_data.set_base_dir(model.graph, file.parent)
    return model


def _read(proto: onnx.ModelProto) -> ir.Model:
    """The model with its functions inlined, its nodes in order, and Constant nodes and sparse weights as initializers.

    ONNX Runtime makes initializers of all of these when it loads a model.
    """
    _forget_maps(proto.graph)
    _forget_negative_sizes(proto.graph)
    if proto.ir_version < FIRST_OVERRIDABLE_IR:
        _forget_constant_inputs(proto.graph)
    sparse = set_apart(proto.graph)
    with _quiet():
        model = ir.from_proto(proto)
        for node in model.graph:
            node.meta[WRITTEN] = True
        _forget_declarations_of_functions(model)
        model = InlinePass()(model).model if model.functions else model
        model.graph.sort()
        model = LiftConstantsToInitializersPass()(model).model
    _forget_declared_constants(model)
    put_back(model, sparse)
    return model


def _forget_declarations_of_functions(model: ir.Model) -> None:
    """Takes away what functions declare of their own values, which ONNX Runtime does not read."""
    for function in model.functions.values():
        for value in (value for node in function.all_nodes() for value in node.outputs):
            value.type = value.shape = None


def _forget_declared_constants(model: ir.Model) -> None:
    """Gives each constant the type of what is stored, as ONNX Runtime does, whatever is declared beside it."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None and not value.is_graph_input():
                value.type = ir.TensorType(value.const_value.dtype)
                value.shape = ir.Shape(value.const_value.shape.numpy())
    for node in model.graph.all_nodes():
        if node.op_type == "Constant":
            node.outputs[0].type = node.outputs[0].shape = None


def is_written(node: ir.Node) -> bool:
    """Whether a node is one of the file's own main graph, not of a function that was inlined or of a branch."""
    return WRITTEN in node.meta


def _forget_constant_inputs(graph: onnx.GraphProto) -> None:
    """Takes away the inputs that are initializers: up to IR 3 all had to be listed, and none can be fed.

    Those that declare something else than is stored stay, for a rule to find.
    """
    held = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name in held]
    for value in inputs:
        declared, stored = value.type.tensor_type, held[value.name]
        pairs = zip(declared.shape.dim, stored.dims, strict=False)
        fits = len(declared.shape.dim) == len(stored.dims) or not declared.HasField("shape")
        if fits and declared.elem_type == stored.data_type and all(d.dim_value in (0, s) for d, s in pairs):
            graph.input.remove(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """onnx-ir logs what it then leaves to its caller to find."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _forget_maps(graph: onnx.GraphProto) -> None:
    """Takes away the types of maps, which classifiers return and onnx-ir does not read; no rule looks at them."""
    for info in (*graph.input, *graph.output, *graph.value_info):
        inner = info.type
        while inner.WhichOneof("value") in ("sequence_type", "optional_type"):
            kind = inner.WhichOneof("value")
            inner = inner.sequence_type.elem_type if kind == "sequence_type" else inner.optional_type.elem_type
        if inner.HasField("map_type"):
            info.ClearField("type")


def _forget_negative_sizes(graph: onnx.GraphProto) -> None:
    """Makes sizes of -1, as Paddle writes free axes, free ones without a name, as ONNX Runtime does."""
    for holder in graphs_in(graph):
        for info in (*holder.input, *holder.output, *holder.value_info):
            for dim in info.type.tensor_type.shape.dim if info.type.HasField("tensor_type") else ():
                if dim.dim_value < 0:
                    dim.ClearField("dim_value")


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0]


def external_data(model: ir.Model, folder: Path) -> Iterator[ExternalData]:
    """Every initializer whose bytes are in another file, those of subgraphs too."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                place = str(tensor.location)
                yield ExternalData(str(value.name), place, folder, tensor.offset or 0, tensor.length)
