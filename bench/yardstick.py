"""A hand-made decoder graph with random weights: what plain ONNX Runtime can do with this shape.

It has no more nodes than the mathematics needs, one layout of activations throughout ([batch, sequence, hidden]), a
fused product for query, key and value, rotary embedding inside the attention, and the head on the last position only.
It is right for prompts without padding, and its weights mean nothing: it is here to be timed.

Usage: yardstick.py OUT.onnx [--shape 0.5b|3b|tiny] [--block-size 32]    builds the graph
       yardstick.py OUT.onnx --time                                    … and times it, two threads
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from shapes import NORM_EPSILON, ROPE_THETA, SHAPES, Shape

CONTRIB = "com.microsoft"
OPSETS = {"": 21, CONTRIB: 1}
IR_VERSION = 10
ALIGNMENT_BYTES = 4096
"""Of each tensor in the data file: the page size, so that ONNX Runtime can map the file."""
EMBEDDED_BYTES = 1024
"""Tensors up to this size stay in the .onnx file."""
ROTARY_POSITIONS = 2048
"""Rows of the rotary tables; prompts and answers of the benchmark are shorter."""
INT8_ACTIVATIONS = 4
"""MatMulNBits' `accuracy_level` for products with int8 activations, what every CPU contender runs with."""


@dataclass
class Builder:
    """Collects the nodes of one graph and streams its weights to the data file beside it."""

    path: Path
    block_size: int
    data: IO[bytes]
    nodes: list[ir.Node] = field(default_factory=list)
    weights: list[ir.Value] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def weight(self, name: str, array: NDArray[Any]) -> ir.Value:
        """An initializer that holds `array`, in the data file unless it is small."""
        tensor: ir.TensorProtocol = ir.tensor(array, name=name)
        if array.nbytes > EMBEDDED_BYTES:
            self.data.write(b"\0" * (-self.data.tell() % ALIGNMENT_BYTES))
            offset = self.data.tell()
            self.data.write(array.tobytes())
            place = self.path.with_suffix(".onnx.data").name
            tensor = ir.ExternalTensor(
                place,
                offset,
                array.nbytes,
                tensor.dtype,
                shape=ir.Shape(array.shape),
                name=name,
                base_dir=self.path.parent,
            )
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.weights.append(value)
        return value

    def op(self, kind: str, *inputs: ir.Value | None, name: str, domain: str = "", **attributes: Any) -> ir.Value:
        """A node with one output, which is called `name` too."""
        return self.ops(kind, *inputs, names=[name], domain=domain, **attributes)[0]

    def ops(
        self, kind: str, *inputs: ir.Value | None, names: Sequence[str], domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """A node with the outputs `names`."""
        outputs = [ir.Value(name=name) for name in names]
        self.nodes.append(ir.node(kind, inputs, attributes, domain=domain, outputs=outputs, name=names[0]))
        return outputs

    def linear(self, x: ir.Value, name: str, inner: int, outer: int, bias: bool = False) -> ir.Value:
        """x [..., inner] times a 4-bit matrix [outer, inner], plus a bias: one MatMulNBits."""
        blocks = -(-inner // self.block_size)
        codes = self.random.integers(0, 256, (outer, blocks, self.block_size // 2), np.uint8)
        scales = self.random.random((outer, blocks), np.float32) * 0.01
        inputs: list[ir.Value | None] = [x, self.weight(f"{name}.codes", codes), self.weight(f"{name}.scales", scales)]
        if bias:
            inputs += [None, None, self.weight(f"{name}.bias", np.zeros(outer, np.float32))]
        settings = {"bits": 4, "block_size": self.block_size, "accuracy_level": INT8_ACTIVATIONS}
        return self.op("MatMulNBits", *inputs, name=name, domain=CONTRIB, K=inner, N=outer, **settings)

    def norm(self, x: ir.Value, name: str, width: int) -> ir.Value:
        """Root mean square norm over the last dimension."""
        scale = self.weight(f"{name}.weight", np.ones(width, np.float32))
        return self.op("SimplifiedLayerNormalization", x, scale, name=name, epsilon=NORM_EPSILON, axis=-1, stash_type=1)


@dataclass(frozen=True)
class Lengths:
    """What every attention node needs besides its own inputs: see `com.microsoft::GroupQueryAttention`."""

    seqlens: ir.Value
    total: ir.Value
    cos: ir.Value
    sin: ir.Value


def build(path: Path, shape: Shape, block_size: int = 32) -> Path:
    """Writes the graph to `path` and its weights to `path`.data; returns `path`."""
    partial = path.with_name(f"{path.name}.data.partial")
    with partial.open("wb") as data:
        builder = Builder(path, block_size, data)
        inputs = _inputs(shape)
        outputs = _decoder(builder, shape, inputs)
    partial.rename(path.with_name(f"{path.name}.data"))
    graph = ir.Graph(
        list(inputs.values()),
        outputs,
        nodes=builder.nodes,
        initializers=builder.weights,
        opset_imports=OPSETS,
        name="decoder",
    )
    ir.save(ir.Model(graph, ir_version=IR_VERSION), path)
    return path


def _inputs(shape: Shape) -> dict[str, ir.Value]:
    """The graph's inputs, by name."""
    past: list[int | str] = ["batch_size", shape.kv_heads, "past_sequence_length", shape.head_dim]
    names = [f"past_key_values.{i}.{part}" for i in range(shape.layers) for part in ("key", "value")]
    inputs = [
        _typed("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"]),
        _typed("attention_mask", ir.DataType.INT64, ["batch_size", "total_sequence_length"]),
        *(_typed(name, ir.DataType.FLOAT, past) for name in names),
    ]
    return {str(value.name): value for value in inputs}


def _typed(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _decoder(b: Builder, shape: Shape, inputs: dict[str, ir.Value]) -> list[ir.Value]:
    """The whole model, from token ids to logits; returns the graph's outputs."""
    table = b.weight("embedding", (b.random.random((shape.vocab, shape.hidden), np.float32) * 0.02).astype(np.float16))
    embedded = b.op("Gather", table, inputs["input_ids"], name="embedded")
    residual = b.op("Cast", embedded, name="hidden", to=ir.DataType.FLOAT)
    lengths = _lengths(b, shape, inputs["attention_mask"])
    outputs: list[ir.Value] = []
    normed = b.norm(residual, "layers.0.norm1", shape.hidden)
    for index in range(shape.layers):
        past = [inputs[f"past_key_values.{index}.{part}"] for part in ("key", "value")]
        attended, *present = _attention(b, shape, index, normed, past, lengths)
        outputs += present
        residual = b.op("Add", residual, attended, name=f"layers.{index}.sum1")
        fed = _feed_forward(b, shape, f"layers.{index}", b.norm(residual, f"layers.{index}.norm2", shape.hidden))
        residual = b.op("Add", residual, fed, name=f"layers.{index}.sum2")
        normed = b.norm(residual, f"layers.{index + 1}.norm1", shape.hidden)
    logits = b.linear(_last_position(b, normed), "logits", shape.hidden, shape.vocab)
    return _with_types(shape, logits, outputs)


def _with_types(shape: Shape, logits: ir.Value, present: list[ir.Value]) -> list[ir.Value]:
    """Declares the types and shapes of the graph's outputs."""
    logits.type, logits.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch_size", 1, shape.vocab])
    for value in present:
        value.type = ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape(["batch_size", shape.kv_heads, "total_sequence_length", shape.head_dim])
    return [logits, *present]


def _lengths(b: Builder, shape: Shape, mask: ir.Value) -> Lengths:
    """The number of real tokens minus one per row, the total length, and the rotary tables."""
    one = b.weight("one", np.array([1], np.int64))
    real = b.op("ReduceSum", mask, one, name="real", keepdims=0)
    seqlens = b.op("Cast", b.op("Sub", real, one, name="last"), name="seqlens_k", to=ir.DataType.INT32)
    axis = b.weight("axis", np.array(1, np.int64))
    length = b.op("Gather", b.op("Shape", mask, name="mask_shape"), axis, name="length")
    total = b.op("Cast", length, name="total_sequence_length", to=ir.DataType.INT32)
    frequencies = ROPE_THETA ** -(np.arange(0, shape.head_dim, 2) / shape.head_dim)
    angles = np.outer(np.arange(ROTARY_POSITIONS), frequencies)
    cos, sin = (b.weight(name, f(angles).astype(np.float32)) for name, f in (("cos", np.cos), ("sin", np.sin)))
    return Lengths(seqlens, total, cos, sin)


def _attention(
    b: Builder, shape: Shape, index: int, x: ir.Value, past: Sequence[ir.Value], lengths: Lengths
) -> Sequence[ir.Value]:
    """The attention of one layer: its output, the present keys and the present values."""
    name, width = f"layers.{index}", shape.heads * shape.head_dim
    qkv = b.linear(x, f"{name}.qkv", shape.hidden, width + 2 * shape.kv_heads * shape.head_dim, bias=True)
    attended, *present = b.ops(
        "GroupQueryAttention",
        *(qkv, None, None, *past, lengths.seqlens, lengths.total, lengths.cos, lengths.sin),
        names=[f"{name}.attention", f"present.{index}.key", f"present.{index}.value"],
        domain=CONTRIB,
        num_heads=shape.heads,
        kv_num_heads=shape.kv_heads,
        scale=shape.head_dim**-0.5,
        do_rotary=1,
    )
    return [b.linear(attended, f"{name}.o", width, shape.hidden), *present]


def _feed_forward(b: Builder, shape: Shape, name: str, x: ir.Value) -> ir.Value:
    """down(silu(gate(x)) * up(x))."""
    gate = b.linear(x, f"{name}.gate", shape.hidden, shape.intermediate)
    up = b.linear(x, f"{name}.up", shape.hidden, shape.intermediate)
    silu = b.op("Mul", gate, b.op("Sigmoid", gate, name=f"{name}.sigmoid"), name=f"{name}.silu")
    product = b.op("Mul", silu, up, name=f"{name}.product")
    return b.linear(product, f"{name}.down", shape.intermediate, shape.hidden)


def _last_position(b: Builder, x: ir.Value) -> ir.Value:
    """x [batch, sequence, hidden] → [batch, 1, hidden]."""
    bounds = [b.weight(n, np.array([v], np.int64)) for n, v in (("start", -1), ("end", 2**62), ("axes", 1))]
    return b.op("Slice", x, *bounds, name="last_hidden")


class Session:
    """The graph in plain ONNX Runtime, each layer's past and present bound to one buffer."""

    def __init__(self, path: Path, shape: Shape, threads: int, capacity: int) -> None:
        """Loads the graph at `path` with a cache for `capacity` tokens of one sequence."""
        import onnxruntime as ort  # so that building needs no runtime

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        self.mask = np.ones((1, capacity), np.int64)
        names = [f"{index}.{part}" for index in range(shape.layers) for part in ("key", "value")]
        # an OrtValue uses the array's own memory: each needs an array of its own, which must stay alive
        self.caches = [np.zeros((1, shape.kv_heads, capacity, shape.head_dim), np.float32) for _ in names]
        for name, array in zip(names, self.caches, strict=True):
            cache = ort.OrtValue.ortvalue_from_numpy(array)
            self.binding.bind_ortvalue_input(f"past_key_values.{name}", cache)
            self.binding.bind_ortvalue_output(f"present.{name}", cache)
        self.logits = np.zeros((1, 1, shape.vocab), np.float32)
        self.binding.bind_output("logits", "cpu", 0, np.float32, self.logits.shape, self.logits.ctypes.data)

    def step(self, tokens: Sequence[int], past: int) -> int:
        """Feeds `tokens` after `past` cached ones and returns the likeliest next token."""
        self.binding.bind_cpu_input("input_ids", np.array([tokens], np.int64))
        self.binding.bind_cpu_input("attention_mask", self.mask[:, : past + len(tokens)].copy())
        self.session.run_with_iobinding(self.binding)
        return int(self.logits.argmax())


def tokens_per_second(session: Session, past: int, new: int, repeats: int) -> float:
    """The median speed of feeding `new` tokens after `past` cached ones."""
    seconds = []
    for _ in range(repeats + 2):  # two are for warming up
        start = time.perf_counter()
        session.step(range(5, 5 + new), past)
        seconds.append(time.perf_counter() - start)
    return new / statistics.median(seconds[2:])


def main() -> None:
    """Parses the command line, builds the graph and times it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--time", action="store_true")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    if not args.out.exists():
        build(args.out, shape, args.block_size)
    if args.time:
        session = Session(args.out, shape, threads=2, capacity=1024)
        decode, prefill = tokens_per_second(session, 128, 1, 60), tokens_per_second(session, 0, 128, 9)
        print(f"decode {decode:.1f} tokens/s, prefill {prefill:.1f} tokens/s")


if __name__ == "__main__":
    main()
