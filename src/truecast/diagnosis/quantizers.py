"""Whether ONNX Runtime's own quantization tools get through a file, told from the file without its weights.

`quantize_dynamic` infers shapes, turns each Gemm into MatMul and Add, infers again and replaces node by node;
`quant_pre_process` begins with symbolic shape inference. Both end with an exception at what they did not expect
(onnxruntime/python/tools/quantization, symbolic_shape_infer.py, 1.31). The steps that need no weights are followed
here; symbolic inference is the tool's own, run on the graph without its weights.
"""

from __future__ import annotations

import logging
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from truecast.diagnosis.inference import INFERENCE_ERRORS, NAME_DOMAIN, NO_DOMAIN, complaints
from truecast.diagnosis.schemas import STANDARD, standard
from truecast.diagnosis.sparse import graphs_in
from truecast.diagnosis.stored import tensor_bytes

DYNAMIC, PRE_PROCESS = "quantize_dynamic", "quant_pre_process"
CONVERTED_BELOW, CONVERTED_TO = 10, 11
"""Opsets that `quantize_dynamic` converts first, and to which; `quant_pre_process` converts opset 10 too."""
CONVERSION_ERRORS = (*INFERENCE_ERRORS, IndexError)
"""What inference and the version converter raise, the latter's C++ maps among them."""
OLDEST_OPSET = 7
"""Below it symbolic inference does nothing."""
MOST_NODES = 5_000
"""Up to which symbolic inference is run here. It took 0.6 s for 2,100 nodes of a network of convolutions, and 2.5 s for
540 of a detector with many sizes computed in the graph."""
SYMBOLIC = Path(ort.__file__).parent / "tools" / "symbolic_shape_infer.py"
FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)
MOST_BYTES = 1 << 22
"""Of a weight that symbolic inference may read: it looks at the elements of what is added or multiplied."""
STOPPED = "Stopping at incomplete shape inference"
SKIP_SYMBOLIC = "Call quant_pre_process with skip_symbolic_shape=True"
EXTERNAL_TOO = " and save_as_external_data=True"
FIRST = "Run quant_pre_process(…, skip_symbolic_shape=True) first and quantize its result"
LIFT_CONSTANTS = f"{FIRST}: it makes initializers of constants."


@dataclass(frozen=True)
class Stop:
    """Where a tool goes wrong, why, and the way round it; `wrong` where it ends without an error and its result is."""

    tool: str
    reason: str
    way: str
    wrong: bool = False


def read_light(file: Path) -> onnx.ModelProto:
    """The file as written, with zeros for float weights in other files and without the bytes of large ones."""
    model = onnx.load_model(file, format="protobuf", load_external_data=False)
    for graph in graphs_in(model.graph):
        held = [a.t for node in graph.node for a in node.attribute if a.HasField("t")]
        for tensor in (*graph.initializer, *held):
            if tensor.data_type in FLOATS:
                _lighten(tensor)
    return model


def _lighten(tensor: onnx.TensorProto) -> None:
    """Takes the bytes of a large weight away and puts zeros for a small one that lies in another file."""
    external, size = tensor.data_location == onnx.TensorProto.EXTERNAL, tensor_bytes(tensor)
    if external:
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    if size > MOST_BYTES:
        for field in ("raw_data", "float_data", "int32_data", "double_data"):
            tensor.ClearField(field)
    elif external:
        tensor.raw_data = bytes(size)


def stops(light: onnx.ModelProto, external: bool = False) -> Iterator[Stop]:
    """Where the tools stop, in the order of their steps; what comes behind the first stop of a tool may stop it too.

    `external` says that the file's weights lie in another.
    """
    yield from _stops_of_dynamic(light)
    if sum(len(graph.node) for graph in graphs_in(light.graph)) <= MOST_NODES and (reason := _symbolic(light)):
        yield Stop(PRE_PROCESS, reason, f"{SKIP_SYMBOLIC}{EXTERNAL_TOO if external else ''}.")


def _stops_of_dynamic(light: onnx.ModelProto) -> Iterator[Stop]:
    versions = [entry.version for entry in light.opset_import if entry.domain in STANDARD]
    if len(versions) != 1:
        reason = f"the file names ONNX's own operators {len(versions)} times in its opset_import"
        yield Stop(DYNAMIC, reason, "Leave one entry for each domain in opset_import.")
        return
    try:
        known = onnx.shape_inference.infer_shapes(light)
        if versions[0] < CONVERTED_BELOW:
            known = onnx.version_converter.convert_version(known, CONVERTED_TO)
    except CONVERSION_ERRORS as error:
        yield Stop(DYNAMIC, complaints(error)[0], _way_to_infer(light, complaints(error)[0]))
        return
    yield from _stops_at_gemms(known.graph)
    yield from _stops_at_convolutions(known.graph)


def _way_to_infer(light: onnx.ModelProto, complaint: str) -> str:
    if NO_DOMAIN in complaint:
        return NAME_DOMAIN
    bare = onnx.ModelProto()
    bare.CopyFrom(light)
    for graph in graphs_in(bare.graph):
        graph.ClearField("value_info")
    try:
        onnx.shape_inference.infer_shapes(bare)
    except INFERENCE_ERRORS:
        return "Correct the shapes and types that the graph declares of its inputs and outputs."
    return "Delete the graph's value_info, which is made again."


def _stops_at_gemms(graph: onnx.GraphProto) -> Iterator[Stop]:
    """Weights that become transposed in place, as if nothing else read or described them."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    described = {info.name: _dims(info) for info in graph.value_info}
    reads = Counter(name for inner in graphs_in(graph) for node in inner.node for name in node.input)
    turned = Counter(n.input[1] for inner in graphs_in(graph) for n in inner.node if _is_turned(n, weights))
    for name, times in turned.items():
        if reads[name] != times or times % 2 == 0:  # an odd number of turns is one turn
            reason = f"{name} is transposed once for each of its {times} Gemm nodes, and {reads[name]} nodes read it"
            yield Stop(DYNAMIC, reason, "Give each of these nodes a weight of its own before quantizing.", wrong=True)
        elif described.get(name, weights[name][::-1]) != weights[name][::-1]:
            reason = f"value_info describes {name}, which is transposed for a Gemm node, as {list(described[name])}"
            yield Stop(DYNAMIC, reason, "Delete the graph's value_info, which is made again.")


def _is_turned(node: onnx.NodeProto, weights: dict[str, tuple[int, ...]]) -> bool:
    """Whether a Gemm becomes a MatMul with its weight transposed."""
    if node.op_type != "Gemm" or len(node.input) < 2 or node.input[1] not in weights:
        return False
    held = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    return held.get("transB", 0) == 1 and not held.get("transA", 0) and held.get("alpha", 1) == held.get("beta", 1) == 1


def _dims(info: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)


def _stops_at_convolutions(graph: onnx.GraphProto) -> Iterator[Stop]:
    """Convolutions of floats with a bias whose weight is no initializer."""
    initializers = {tensor.name for tensor in graph.initializer}
    constants = {node.output[0] for node in graph.node if node.op_type == "Constant"}
    infos = (*graph.value_info, *graph.input)
    floats = {info.name for info in infos if info.type.tensor_type.elem_type in FLOATS} | initializers
    for node in (node for node in graph.node if node.op_type == "Conv" and not standard(node.domain)):
        if len(node.input) > 2 and node.input[0] in floats and node.input[1] not in initializers:
            reason = f"{node.input[1]}, the weight of Conv {node.name}, is no initializer"
            excluded = f"Name such nodes in nodes_to_exclude ({node.name or 'they need names'})."
            yield Stop(DYNAMIC, reason, LIFT_CONSTANTS if node.input[1] in constants else excluded)


def _symbolic(light: onnx.ModelProto) -> str | None:
    """Why ONNX Runtime's symbolic shape inference gives up; None where it ends, or does nothing."""
    version = max((entry.version for entry in light.opset_import if entry.domain in STANDARD), default=0)
    if version < OLDEST_OPSET or (
        version <= CONVERTED_BELOW and any(n.op_type == "Upsample" for n in light.graph.node)
    ):
        return None  # an Upsample is replaced first
    if version <= CONVERTED_BELOW:
        try:
            light = onnx.version_converter.convert_version(light, CONVERTED_TO)
        except CONVERSION_ERRORS as error:
            return complaints(error)[0]
    module, heard = _symbolic_module(), _Heard()
    module.logger.addHandler(heard)
    try:
        return _followed(module.SymbolicShapeInference(2**31 - 1, False, False, 0), light, heard)
    finally:
        module.logger.removeHandler(heard)


def _followed(tool: Any, light: onnx.ModelProto, heard: _Heard) -> str | None:
    """The tool's `infer_shapes`, which would leave a file in the current folder where it fails."""
    try:
        tool._preprocess(light)
        complete = True
        while tool.run_:
            complete = tool._infer_impl()
    except Exception as error:  # it asserts, indexes and raises bare exceptions
        place = traceback.extract_tb(error.__traceback__)[-1].name
        if place == "to_array":  # of a weight that is left out here
            return None
        said = f": {str(error).splitlines()[0]}" if str(error) else ""
        return f"symbolic shape inference ends with {type(error).__name__} in {place}{said}"
    return None if complete else f"symbolic shape inference is incomplete{heard.where}"


class _Heard(logging.Handler):
    """Keeps where the tool says that it stopped."""

    where = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Reads one message."""
        if record.getMessage().startswith(STOPPED):
            self.where = record.getMessage().removeprefix(STOPPED)


@cache
def _symbolic_module() -> Any:
    """The tool's module, read from its file: importing it by name imports torch, which it does not need."""
    spec = util.spec_from_file_location("truecast_symbolic_shape_infer", SYMBOLIC)
    if spec is None or spec.loader is None:
        raise ImportError(str(SYMBOLIC))
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.logger.setLevel(logging.DEBUG)  # it says only there where it stops
    module.logger.propagate = False
    return module
