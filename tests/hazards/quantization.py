"""TC2xx: what quantizers leave behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.hazards.building import WIDTH, Hazard, constant, layer, linear, model, node, rows, save, tensor, weight

BLOCK = 32


def _nbits(source: str, result: str, name: str) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    """A 4-bit product and its operands."""
    random = np.random.default_rng(len(name))
    blocks = WIDTH // BLOCK
    codes = random.integers(0, 256, (WIDTH, blocks, BLOCK // 2)).astype(np.uint8)
    scales = np.full(WIDTH * blocks, 0.01, np.float32)
    product = node(
        "com.microsoft.MatMulNBits",
        [source, name, f"{name}_scales"],
        [result],
        K=WIDTH,
        N=WIDTH,
        bits=4,
        block_size=BLOCK,
    )
    return product, [constant(name, codes, np.uint8), constant(f"{name}_scales", scales)]


def left_in_float(folder: Path, hazard: bool) -> Path:
    """The first product is quantized and the head is not."""
    first, operands = _nbits("x", "h", "q")
    if hazard:
        return save(model([first, layer("h")], [rows()], [rows("y")], [*operands, weight("w", WIDTH, WIDTH)]), folder)
    second, more = _nbits("h", "y", "head")
    return save(model([first, second], [rows()], [rows("y")], [*operands, *more]), folder)


def quantized_nothing(folder: Path, hazard: bool) -> Path:
    """What quantize_dynamic writes when none of its operators is in the graph; the twin never met a quantizer."""
    made = linear()
    made.producer_name = "onnx.quantize" if hazard else "pytorch"
    return save(made, folder)


def quantized_no_convolution(folder: Path, hazard: bool) -> Path:
    """The same without a linear: nothing but convolutions, in float."""
    image = node("Conv", ["x", "k"], ["y"], pads=[1, 1, 1, 1])
    ends = [tensor("x", ["batch", 8, 16, 16])], [tensor("y", ["batch", 16, 16, 16])]
    made = model([image], *ends, [weight("k", 16, 8, 3, 3)])
    made.producer_name = "onnx.quantize" if hazard else "pytorch"
    return save(made, folder)


def transposed_dequantize(folder: Path, hazard: bool) -> Path:
    """Rows of outputs behind a Transpose, as checkpoints store them, against columns, which fuse."""
    codes = helper.make_tensor("codes", TensorProto.INT4, [WIDTH, WIDTH], (np.arange(WIDTH * WIDTH) % 15 - 7).tolist())
    shape = (WIDTH, WIDTH // BLOCK) if hazard else (WIDTH // BLOCK, WIDTH)
    scales = constant("scales", np.full(shape, 0.01))
    dequantize = node("DequantizeLinear", ["codes", "scales"], ["d"], axis=int(hazard), block_size=BLOCK)
    nodes = (
        [dequantize, node("Transpose", ["d"], ["t"], perm=[1, 0]), layer(matrix="t")]
        if hazard
        else [dequantize, layer(matrix="d")]
    )
    return save(model(nodes, [rows()], [rows("y")], [codes, scales], opset=21), folder)


def dequantized_table(folder: Path, hazard: bool) -> Path:
    """A whole embedding is dequantized to read a few of its rows."""
    codes, scale = weight("codes", 256, WIDTH, dtype=np.int8, scale=20), constant("scale", 0.01)
    if hazard:
        nodes = [node("DequantizeLinear", ["codes", "scale"], ["d"]), node("Gather", ["d", "ids"], ["y"])]
    else:
        nodes = [node("Gather", ["codes", "ids"], ["g"]), node("DequantizeLinear", ["g", "scale"], ["y"])]
    ids = tensor("ids", ["batch"], TensorProto.INT64)
    return save(model(nodes, [ids], [rows("y")], [codes, scale]), folder)


def float_between_qdq(folder: Path, hazard: bool) -> Path:
    """Gemm without a quantized output keeps its float kernel; MatMul fuses."""
    scale, zero = constant("s", 0.05), constant("z", 128, np.uint8)
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("DequantizeLinear", ["codes", "s"], ["wd"]),
        node("Gemm" if hazard else "MatMul", ["d", "wd"], ["y"]),
    ]
    codes = weight("codes", WIDTH, WIDTH, dtype=np.int8, scale=12)
    return save(model(nodes, [rows()], [rows("y")], [scale, zero, codes]), folder)


def saturating(folder: Path, hazard: bool) -> Path:
    """Weights over the whole of int8, or over seven bits."""
    codes = np.where(np.arange(WIDTH * WIDTH).reshape(WIDTH, WIDTH) % 2, 127, -127) // (1 if hazard else 2)
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("MatMulInteger", ["q", "codes", "z"], ["i"]),
        node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["f", "s"], ["y"]),
    ]
    return save(model(nodes, [rows()], [rows("y")], [constant("codes", codes, np.int8)]), folder)


def mistaken_attention(folder: Path, hazard: bool) -> Path:
    """ONNX's Attention under the quantizer's name for the older operator."""
    if not hazard:
        return save(linear(), folder)
    dims = ["batch", 4, "length", 16]
    names = ["q", "k", "v"]
    attention = node("com.microsoft.QAttention", [*names, "s", "s"], ["y"], num_heads=4)
    inputs = [tensor(name, dims, TensorProto.UINT8) for name in names]
    return save(model([attention], inputs, [tensor("y", dims)], [constant("s", 0.1)]), folder)


def outlying_channel(folder: Path, hazard: bool) -> Path:
    """One channel 200 times the others, as norms of trained models make it, before its codes are made.

    Its weights are small, so that it does not drown the others in the answer.
    """
    reach = np.ones(WIDTH)
    reach[5] = 200 if hazard else 2
    nodes = [
        node("Mul", ["x", "reach"], ["h"]),
        node("DynamicQuantizeLinear", ["h"], ["q", "s", "z"]),
        node("MatMulInteger", ["q", "codes", "z"], ["i"]),
        node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["f", "s"], ["y"]),
    ]
    codes = np.random.default_rng(0).integers(-30, 31, (WIDTH, WIDTH))
    codes[5] = np.sign(codes[5])
    weights = [constant("reach", reach), constant("codes", codes, np.int8)]
    return save(model(nodes, [rows()], [rows("y")], weights), folder)


def faint_but_harmless(folder: Path, hazard: bool) -> Path:
    """The outlying channel again; in the twin it is all that the answer is made of, and its own codes are exact."""
    path = outlying_channel(folder, True)
    made = onnx.load(path)
    if not hazard:
        codes = np.zeros((WIDTH, WIDTH), np.int8)
        codes[5] = np.arange(WIDTH)
        made.graph.initializer[1].CopyFrom(constant("codes", codes, np.int8))
    return save(made, folder)


def rounded_experts(folder: Path, hazard: bool) -> Path:
    """Experts of 8 bits at the level of floats, against the level that says what their kernel does."""
    random = np.random.default_rng(0)
    experts, inner = 4, WIDTH
    operands, inputs = [], ["x", "scores"]
    for name, outputs in (("first", inner), ("second", WIDTH)):
        codes = random.integers(0, 256, (experts, outputs, WIDTH)).astype(np.uint8)
        scales = np.full((experts, outputs, WIDTH // BLOCK), 0.01, np.float32)
        operands += [constant(name, codes, np.uint8), constant(f"{name}_scales", scales)]
        inputs += [name, f"{name}_scales", ""]
    product = node(
        "com.microsoft.QMoE",
        inputs[:-1],
        ["y"],
        k=2,
        expert_weight_bits=8,
        block_size=BLOCK,
        activation_type="silu",
        normalize_routing_weights=1,
        accuracy_level=0 if hazard else 4,
    )
    return save(model([product], [rows(), tensor("scores", [None, experts])], [rows("y")], operands), folder)


HAZARDS = (
    Hazard("TC201", "float-head", left_in_float),
    Hazard("TC201", "nothing", quantized_nothing),
    Hazard("TC201", "no-convolution", quantized_no_convolution),
    Hazard("TC202", "behind-transpose", transposed_dequantize),
    Hazard("TC202", "table", dequantized_table),
    Hazard("TC203", "gemm", float_between_qdq, run=True),
    Hazard("TC204", "full-range", saturating, saturating=True),
    Hazard("TC204", "full-range-on-exact-host", saturating),
    Hazard("TC206", "outlying-channel", outlying_channel, run=True),
    Hazard("TC206", "harmless", faint_but_harmless, run=True),
    Hazard("TC205", "attention", mistaken_attention, besides=("TC404", "TC405", "TC106")),
    Hazard("TC207", "experts", rounded_experts),
)
