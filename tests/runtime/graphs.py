"""Tiny decoder artifacts with random weights, made with onnx.helper: two layers of GroupQueryAttention and a head.

`padding="any"` builds the graph that is right for every mask (bias from the mask, rotary by explicit positions);
`padding="right"` the one that counts the mask and rotates inside the operator.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from truecast.artifact import (
    CacheInfo,
    Certificate,
    GraphInfo,
    Manifest,
    Source,
    Status,
    TensorInfo,
    write_manifest,
)

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS, CONTEXT = 32, 4, 2, 16, 97, 2, 256
CONTRIB = "com.microsoft"
MASKED = -1e30


class Graph:
    """Nodes and initializers under construction, with seeded random weights."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(seed)

    def constant(self, name: str, value: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        return self.constant(name, (self.random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32))

    def op(self, kind: str, inputs: list[str], output: str, *more: str, domain: str = "", **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output, *more], name=output, domain=domain, **attributes))
        return output


def rotary_tables(graph: Graph) -> list[str]:
    inverse = 10000.0 ** (-np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    angles = np.arange(CONTEXT)[:, None] * inverse
    tables = {"cos": np.cos(angles), "sin": np.sin(angles)}
    return [graph.constant(name, table.astype(np.float32)) for name, table in tables.items()]


def lengths(graph: Graph, padding: str) -> tuple[str, str]:
    """seqlens_k [batch] int32 and the total length as an int32 scalar."""
    one, axis = graph.constant("one", np.array([1], np.int64)), graph.constant("axis1", np.array(1, np.int64))
    total = graph.op("Gather", [graph.op("Shape", ["attention_mask"], "mask_shape"), axis], "total")
    counted = "attention_mask"
    if padding == "any":
        counted = graph.op("Expand", [one, "mask_shape"], "all_ones")
    real = graph.op("ReduceSum", [counted, one], "real", keepdims=0)
    graph.op("Cast", [graph.op("Sub", [real, one], "last")], "seqlens_k", to=TensorProto.INT32)
    return "seqlens_k", graph.op("Cast", [total], "total_length", to=TensorProto.INT32)


def mask_bias(graph: Graph) -> str:
    """Float bias [batch, 1, sequence, total]: MASKED where the mask is 0."""
    zero = graph.constant("zero", np.array(0, np.int64))
    dead = graph.op("Equal", ["attention_mask", zero], "dead")
    values = graph.constant("masked", np.array(MASKED, np.float32)), graph.constant("open", np.array(0, np.float32))
    flat = graph.op("Where", [dead, *values], "flat_bias")
    four = graph.op("Unsqueeze", [flat, graph.constant("axes12", np.array([1, 2], np.int64))], "bias4")
    sequence = graph.op("Shape", ["input_ids"], "new_length", start=1, end=2)
    ones = graph.constant("ones2", np.array([1, 1], np.int64))
    target = graph.op("Concat", [ones, sequence, "one"], "bias_shape", axis=0)
    return graph.op("Expand", [four, target], "bias")


def attention(graph: Graph, layer: int, x: str, padding: str, shared: list[str], bias: str) -> str:
    p = f"layers.{layer}."
    parts = []
    for part, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
        y = graph.op("MatMul", [x, graph.weight(f"{p}{part}.weight", HIDDEN, heads * HEAD_DIM)], f"{p}{part}")
        if padding == "any" and part != "v":
            inputs = [y, "position_ids", "cos", "sin"]
            y = graph.op("RotaryEmbedding", inputs, f"{p}{part}.rotated", domain=CONTRIB, num_heads=heads)
        parts.append(y)
    past = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
    inputs = [*parts, *past, *shared, *(("", "", "", bias) if padding == "any" else ("cos", "sin"))]
    outputs = [f"{p}attention", f"present.{layer}.key", f"present.{layer}.value"]
    graph.op(
        "GroupQueryAttention", inputs, *outputs, domain=CONTRIB,
        num_heads=HEADS, kv_num_heads=KV_HEADS, scale=HEAD_DIM**-0.5, do_rotary=int(padding == "right"),
    )  # fmt: skip
    return graph.op("MatMul", [f"{p}attention", graph.weight(f"{p}o.weight", HEADS * HEAD_DIM, HIDDEN)], f"{p}o")


def head(graph: Graph, x: str, padding: str) -> None:
    """Keeps the last num_logits_to_keep positions (0: all) and projects them to the vocabulary."""
    graph.constant("num_logits_to_keep", np.array(1, np.int64))
    kept = last_real_positions(graph, x) if padding == "right" else last_positions(graph, x)
    graph.op("MatMul", [kept, graph.weight("head.weight", HIDDEN, VOCAB)], "logits")


def last_positions(graph: Graph, x: str) -> str:
    flat = graph.constant("flat", np.array([1], np.int64))
    start = graph.op("Reshape", [graph.op("Neg", ["num_logits_to_keep"], "minus_keep"), flat], "start")
    end = graph.constant("end", np.array([2**62], np.int64))
    return graph.op("Slice", [x, start, end, flat], "kept")


def last_real_positions(graph: Graph, x: str) -> str:
    """Position sum(mask) - 1 - past of each row, at least 0; with num_logits_to_keep 0 every position."""
    zero, scalar = graph.constant("zero", np.array(0, np.int64)), graph.constant("scalar", np.array([], np.int64))
    new = graph.op("Reshape", [graph.op("Shape", ["input_ids"], "new_length", start=1, end=2), scalar], "new")
    past = graph.op("Sub", ["total", new], "past_length")
    last = graph.op("Max", [graph.op("Sub", ["last", past], "last_new"), zero], "last_index")
    column = graph.op("Unsqueeze", [last, "one"], "last_column")
    all_rows = graph.op("Range", [zero, new, "axis1"], "all_positions")
    every = graph.op("Add", [graph.op("Mul", [column, zero], "zero_column"), all_rows], "every_position")
    keeps_all = graph.op("Equal", ["num_logits_to_keep", zero], "keeps_all")
    indices = graph.op("If", [keeps_all], "kept_index", then_branch=identity(every), else_branch=identity(column))
    deep = graph.op("Unsqueeze", [indices, graph.constant("axis2", np.array([2], np.int64))], "kept_index3")
    return graph.op("GatherND", [x, deep], "kept", batch_dims=1)


def identity(name: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(f"{name}.out", TensorProto.INT64, ["batch_size", None])
    return helper.make_graph([helper.make_node("Identity", [name], [output.name])], name, [], [output])


def signature(padding: str) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    value, int64, float32 = helper.make_tensor_value_info, TensorProto.INT64, TensorProto.FLOAT
    inputs = [
        value("input_ids", int64, ["batch_size", "sequence_length"]),
        value("attention_mask", int64, ["batch_size", "total_sequence_length"]),
    ]
    if padding == "any":
        inputs.append(value("position_ids", int64, ["batch_size", "sequence_length"]))
    outputs = [value("logits", float32, ["batch_size", "kept_length" if padding == "any" else 1, VOCAB])]
    for layer in range(LAYERS):
        for part in ("key", "value"):
            past = ["batch_size", KV_HEADS, "past_sequence_length", HEAD_DIM]
            present = ["batch_size", KV_HEADS, "total_sequence_length", HEAD_DIM]
            inputs.append(value(f"past_key_values.{layer}.{part}", float32, past))
            outputs.append(value(f"present.{layer}.{part}", float32, present))
    inputs.append(value("num_logits_to_keep", int64, []))
    return inputs, outputs


def decoder_model(padding: str, seed: int = 0) -> onnx.ModelProto:
    graph = Graph(seed)
    embedded = graph.op("Gather", [graph.weight("embedding", VOCAB, HIDDEN), "input_ids"], "embedded")
    x = graph.op("Mul", [embedded, graph.constant("gain", np.array(10, np.float32))], "hidden")
    rotary_tables(graph)
    shared = list(lengths(graph, padding))
    bias = mask_bias(graph) if padding == "any" else ""
    for layer in range(LAYERS):
        x = graph.op("Add", [x, attention(graph, layer, x, padding, shared, bias)], f"layers.{layer}.sum")
        wide = graph.op("MatMul", [x, graph.weight(f"layers.{layer}.mlp", HIDDEN, HIDDEN)], f"layers.{layer}.mlp.y")
        x = graph.op("Add", [x, graph.op("Tanh", [wide], f"layers.{layer}.tanh")], f"layers.{layer}.out")
    head(graph, x, padding)
    inputs, outputs = signature(padding)
    made = helper.make_graph(graph.nodes, "decoder", inputs, outputs, graph.initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    shape = [d.dim_param or d.dim_value for d in tensor.shape.dim]
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    return TensorInfo(name=value.name, dtype=dtype, shape=shape)


def graph_info(padding: str, in_place: bool, eos: tuple[int, ...] = ()) -> GraphInfo:
    inputs, outputs = signature(padding)
    return GraphInfo(
        padding=padding,
        opsets={"": 21, CONTRIB: 1},
        ir_version=10,
        inputs=[tensor_info(value) for value in inputs if value.name != "num_logits_to_keep"],
        outputs=[tensor_info(value) for value in outputs],
        cache=CacheInfo(layers=LAYERS, in_place=in_place, dtype="float32"),
        context_length=CONTEXT,
        vocab_size=VOCAB,
        eos_token_ids=list(eos),
    )


def write_artifact(
    folder: Path, padding: str = "any", in_place: bool = True, eos: tuple[int, ...] = (), seed: int = 0
) -> Path:
    """Writes model.onnx and truecast.json of a tiny decoder into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(decoder_model(padding, seed), folder / "model.onnx")
    manifest = Manifest(
        truecast="0",
        source=Source(path="nowhere", format="made"),
        target="onnxruntime" if padding == "any" else "genai",
        dialect="ort",
        provider="cpu",
        precision="fp32",
        graph=graph_info(padding, in_place, eos),
        weights=[],
        files={},
        certificate=Certificate(status=Status.UNPROVEN),
    )
    write_manifest(folder, manifest)
    return folder
