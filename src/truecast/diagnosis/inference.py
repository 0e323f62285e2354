"""The dtype of every value, and the shapes that ONNX can infer, without running anything.

Dtypes come from the runtime's own schemas, so contrib operators have them too; ONNX's inference, which knows the
standard operators only and fails on some graphs, serves for shapes alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from truecast.diagnosis.bodies import with_parts
from truecast.diagnosis.schemas import Schema, find_schema
from truecast.diagnosis.sparse import graphs_in

Types = Mapping[ir.Value, ir.DataType]
Dim = int | str | None
"""A size, a symbol, or unknown."""

TYPE_NAMES: Mapping[ir.DataType, str] = {
    ir.DataType.FLOAT: "float",
    ir.DataType.DOUBLE: "double",
} | {dtype: dtype.name.lower() for dtype in ir.DataType if dtype.name not in ("FLOAT", "DOUBLE")}
BY_NAME: Mapping[str, ir.DataType] = {f"tensor({name})": dtype for dtype, name in TYPE_NAMES.items()}
KINDS: Mapping[type, str] = {
    ir.TensorType: "tensor",
    ir.SparseTensorType: "sparse_tensor",
    ir.SequenceType: "seq",
    ir.OptionalType: "optional",
}
"""How the names of types begin in the schemas of operators."""
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
INFERENCE_ERRORS = (onnx.shape_inference.InferenceError, ValueError, RuntimeError)
SUMMARY = "[ShapeInferenceError] Inference error(s):"
"""How inference begins when it lists its complaints."""
NO_DOMAIN = "No opset import"
"""What it says of an operator whose domain the file does not name; ONNX Runtime takes version 1 then."""
NAME_DOMAIN = "Name the operator's domain and its version in the file's opset_import."
LARGE_BYTES = 1000
"""Initializers above this size go into inference without their values: no shape depends on one."""


def type_name(dtype: ir.DataType) -> str:
    """The dtype as kernels and schemas name it: "tensor(float)"."""
    return f"tensor({TYPE_NAMES[dtype]})"


def infer_types(nodes: Iterable[ir.Node], opsets: Mapping[str, int]) -> dict[ir.Value, ir.DataType]:
    """The dtype of each value that is declared or follows from the schemas; nodes in topological order."""
    types: dict[ir.Value, ir.DataType] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None and value not in types and (declared := _declared(value)) is not None:
                types[value] = declared
        schema = find_schema(node, opsets)
        for index, value in enumerate(node.outputs):
            found = _from_attributes(node) if _is_tensor(value) else None
            found = found or _from_schema(node, index, schema, types)
            if found is None and may_be_as_declared(value, index, schema):
                found = _declared(value)
            if found is not None:
                types[value] = found
    return types


def _declared(value: ir.Value) -> ir.DataType | None:
    return value.const_value.dtype if value.const_value is not None else declared_dtype(value)


def declared_dtype(value: ir.Value) -> ir.DataType | None:
    """The data type that the file declares for a value, if it is a tensor and one is declared."""
    if not _is_tensor(value):
        return None
    return value.dtype if value.dtype is not None and value.dtype != ir.DataType.UNDEFINED else None


def may_be_as_declared(value: ir.Value, index: int, schema: Schema | None) -> bool:
    """Whether an operator may make what a result of it is declared as: a tensor, a sequence, an optional."""
    formal = schema.output(index) if schema is not None else None
    if schema is None or formal is None or value.type is None:
        return True
    allowed = schema.constraints.get(formal.type_name, frozenset({formal.type_name}))
    return KINDS.get(type(value.type)) in {name.split("(")[0] for name in allowed}


def _is_tensor(value: ir.Value) -> bool:
    """Whether a value is one tensor, or nothing says that it is a sequence or an optional."""
    return value.type is None or isinstance(value.type, ir.TensorType)


def _from_attributes(node: ir.Node) -> ir.DataType | None:
    """The dtype that the node's own attributes name."""
    if node.op_type in ("Constant", "ConstantOfShape"):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                return attribute.as_tensor().dtype
        return ir.DataType.FLOAT if node.op_type == "ConstantOfShape" or "value_float" in node.attributes else None
    for name in TYPE_ATTRIBUTES:
        target = node.attributes.get(name)
        if target is not None and target.type == ir.AttributeType.INT and target.as_int():
            return ir.DataType(target.as_int())
    return None


def _from_schema(node: ir.Node, index: int, schema: Schema | None, types: Types) -> ir.DataType | None:
    """The dtype of an output that shares its constraint with an input or can have only one."""
    parameter = schema.output(index) if schema is not None else None
    if schema is None or parameter is None:
        return None
    if parameter.type_name in BY_NAME:
        return BY_NAME[parameter.type_name]
    allowed = schema.constraints.get(parameter.type_name, frozenset())
    if not _is_tensor(node.outputs[index]) or not all(name in BY_NAME for name in allowed):
        return None
    for position, value in enumerate(node.inputs):
        formal = schema.input(position)
        if value in types and value is not None and formal is not None and formal.type_name == parameter.type_name:
            return types[value] if not parameter.variadic or parameter.homogeneous else None
    return BY_NAME.get(next(iter(allowed))) if len(allowed) == 1 else None


def node_types(node: ir.Node, schema: Schema, types: Types) -> dict[str, frozenset[str]]:
    """The node's dtypes by constraint and by parameter, as kernels are chosen by."""
    found: dict[str, set[str]] = {}
    pairs = [(value, schema.input(i)) for i, value in enumerate(node.inputs)]
    pairs += [(value, schema.output(i)) for i, value in enumerate(node.outputs)]
    for value, parameter in pairs:
        if value is None or parameter is None or value not in types:
            continue
        name = type_name(types[value])
        for key in (parameter.type_name, parameter.name):
            found.setdefault(key, set()).add(name)
    return {key: frozenset(names) for key, names in found.items()}


def clashing_dtypes(schema: Schema, held: Mapping[str, frozenset[str]]) -> list[frozenset[str]]:
    """Several dtypes where a node of this schema must have one; `held` is from `node_types`."""
    free = {p.type_name for p in (*schema.inputs, *schema.outputs) if p.variadic and not p.homogeneous}
    return [names for key in set(schema.constraints) - free if len(names := held.get(key, frozenset())) > 1]


def forbidden_dtypes(node: ir.Node, schema: Schema, types: Types) -> set[str]:
    """Dtypes of inputs that the operator's definition does not allow; the runtime does not check those of outputs."""
    wrong = set()
    for index, value in enumerate(node.inputs):
        formal = schema.input(index)
        allowed = schema.constraints.get(formal.type_name) if formal is not None else None
        if value is not None and value in types and allowed and type_name(types[value]) not in allowed:
            wrong.add(type_name(types[value]))
    return wrong


@dataclass(frozen=True)
class Shapes:
    """Inferred shapes by the value's name, and what inference said where it failed.

    `failure` is its first complaint about the graph as declared. `refusals` are all complaints about the graph without
    the shapes that it declares of results: ONNX Runtime overrules those, and does not load what fails without them.
    """

    by_name: Mapping[str, tuple[Dim, ...]]
    failure: str | None = None
    refusals: tuple[str, ...] = ()


def infer_shapes(model: ir.Model) -> Shapes:
    """What `onnx.shape_inference` finds; the model is left as it is."""
    light = ir.to_proto(_without_weights(model))
    refusals: tuple[str, ...] = ()
    try:
        light = with_parts(light)
        inferred, failure = onnx.shape_inference.infer_shapes(light, strict_mode=True, data_prop=True), None
    except INFERENCE_ERRORS as error:
        inferred, failure = _leniently(light), complaints(error)[0]
        refusals = _refusals(light)
    graph = inferred.graph
    infos = (*graph.value_info, *graph.output, *graph.input)
    return Shapes(
        {info.name: _dims(info.type.tensor_type) for info in infos if info.type.tensor_type.HasField("shape")},
        failure,
        refusals,
    )


def complaints(error: BaseException) -> list[str]:
    """What inference complains of, one operator each."""
    lines = str(error).strip().removeprefix(SUMMARY).strip().splitlines()
    return [line.strip() for line in lines] or [type(error).__name__]


def _refusals(light: onnx.ModelProto) -> tuple[str, ...]:
    """The complaints about a graph of which only the shapes of its inputs are declared."""
    bare = onnx.ModelProto()
    bare.CopyFrom(light)
    for graph in graphs_in(bare.graph):
        inner = () if graph is bare.graph else graph.input
        for info in (*graph.value_info, *graph.output, *inner):
            _forget_shape(info.type)
    try:
        onnx.shape_inference.infer_shapes(bare, strict_mode=True)
    except INFERENCE_ERRORS as error:
        return tuple(complaints(error))
    return ()


def _forget_shape(declared: onnx.TypeProto) -> None:
    while (kind := declared.WhichOneof("value")) in ("sequence_type", "optional_type"):
        declared = getattr(declared, kind).elem_type
    if kind == "tensor_type":
        declared.tensor_type.ClearField("shape")


def _leniently(light: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=True)
    except INFERENCE_ERRORS:
        return light


def _dims(tensor: onnx.TypeProto.Tensor) -> tuple[Dim, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)


def _without_weights(model: ir.Model) -> ir.Model:
    """A copy whose large initializers are inputs."""
    light = model.clone()
    graph = light.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and (tensor.nbytes > LARGE_BYTES or isinstance(tensor, ir.ExternalTensor)):
            value.shape, value.type, value.const_value = (
                ir.Shape(tensor.shape.numpy()),
                ir.TensorType(tensor.dtype),
                None,
            )
            del graph.initializers[name]
            if value not in graph.inputs:
                graph.inputs.append(value)
    return light
