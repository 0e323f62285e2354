"""TC1xx: operators, kernels, placement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto

from tests.hazards.building import (
    WIDTH,
    Hazard,
    chain,
    constant,
    layer,
    linear,
    model,
    node,
    rows,
    save,
    tensor,
    weight,
)


def opset(folder: Path, hazard: bool) -> Path:
    return save(linear(opset=27 if hazard else 26), folder)


def ir_version(folder: Path, hazard: bool) -> Path:
    return save(linear(ir_version=14 if hazard else 13), folder)


def failed_conversion(folder: Path, hazard: bool) -> Path:
    """RMSNormalization is of opset 23."""
    norm = node("RMSNormalization", ["x", "scale"], ["n"], axis=-1)
    return save(chain([norm], "n", [weight("scale", WIDTH)], opset=18 if hazard else 23), folder)


def foreign(folder: Path, hazard: bool) -> Path:
    return save(chain([node("mine.Relu" if hazard else "Relu", ["x"], ["n"])], "n"), folder)


def unknown_attribute(folder: Path, hazard: bool) -> Path:
    window = {"left_window_size": 4} if hazard else {}
    dims = ["batch", 4, "length", 16]
    attention = node("Attention", ["q", "k", "v"], ["y"], is_causal=1, **window)
    return save(model([attention], [tensor(n, dims) for n in "qkv"], [tensor("y", dims)], opset=24), folder)


def no_kernel(folder: Path, hazard: bool) -> Path:
    """Where chooses between bools, for which there is no kernel."""
    kind = TensorProto.BOOL if hazard else TensorProto.FLOAT
    inputs = [rows("c", TensorProto.BOOL), rows("a", kind), rows("b", kind)]
    return save(model([node("Where", ["c", "a", "b"], ["y"])], inputs, [rows("y", kind)]), folder)


def falls_back(folder: Path, hazard: bool) -> Path:
    """Elu was renewed in opset 22, and nobody registered it again for CUDA."""
    return save(chain([layer("x", "m"), node("Elu", ["m"], ["n"])], "n", opset=22 if hazard else 21), folder)


def copies_in_every_layer(folder: Path, hazard: bool) -> Path:
    nodes, source = [], "x"
    for index in range(3):
        nodes += [
            node("MatMul", [source, "w"], [f"m{index}"], f"/layers.{index}/up/MatMul"),
            node("Elu", [f"m{index}"], [f"e{index}"], f"/layers.{index}/act/Elu"),
        ]
        source = f"e{index}"
    made = model(
        [*nodes, layer(source)], [rows()], [rows("y")], [weight("w", WIDTH, WIDTH)], opset=22 if hazard else 21
    )
    return save(made, folder)


def dynamic_int8_on_cuda(folder: Path, hazard: bool) -> Path:
    """What quantize_dynamic writes."""
    if not hazard:
        return save(linear(), folder)
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("MatMulInteger", ["q", "codes", "z"], ["i"]),
        node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["f", "s"], ["y"]),
    ]
    codes = weight("codes", WIDTH, WIDTH, dtype=np.int8, scale=20)
    return save(model(nodes, [rows()], [rows("y")], [codes]), folder)


def dead_present(folder: Path, hazard: bool) -> Path:
    """Attention with a past whose present outputs were removed as unused."""
    dims, past = ["batch", 4, "length", 16], ["batch", 4, "past", 16]
    outputs = ["y"] if hazard else ["y", "present_k", "present_v"]
    attention = node("Attention", ["q", "k", "v", "", "past_k", "past_v"], outputs)
    inputs = [*(tensor(n, dims) for n in "qkv"), tensor("past_k", past), tensor("past_v", past)]
    shapes = [dims, *[["batch", 4, "total", 16]] * 2]
    results = [tensor(name, shape) for name, shape in zip(outputs, shapes, strict=False)]
    return save(model([attention], inputs, results, opset=23), folder)


def flat_mask(folder: Path, hazard: bool) -> Path:
    """A padding mask [batch, 1, 1, keys]: ONNX broadcasts it, the processor's kernel does not."""
    dims = ["batch", 4, "length", 16]
    mask = tensor("mask", ["batch", 1, 1 if hazard else "length", "length"])
    inputs = [*(tensor(name, dims) for name in "qkv"), mask]
    return save(
        model([node("Attention", ["q", "k", "v", "mask"], ["y"])], inputs, [tensor("y", dims)], opset=23), folder
    )


def expanded(folder: Path, hazard: bool) -> Path:
    parts = [node("Sigmoid", ["x"], ["s"]), node("Mul", ["x", "s"], ["n"])]
    return save(chain([node("Swish", ["x"], ["n"])] if hazard else parts, "n", opset=24), folder)


def grouped(folder: Path, hazard: bool) -> Path:
    """A norm of one channel a group; groups of several channels have no better form, and run as their parts."""
    norm = node("GroupNormalization", ["x", "scale", "shift"], ["y"], num_groups=8 if hazard else 4)
    dims = ["batch", 8, "length"]
    made = model([norm], [tensor("x", dims)], [tensor("y", dims)], [weight("scale", 8), weight("shift", 8)], opset=21)
    return save(made, folder)


def slow_norm(folder: Path, hazard: bool) -> Path:
    """A sum and its norm in one operator of ONNX Runtime, or as two."""
    fused = node("com.microsoft.SkipLayerNormalization", ["x", "x", "g", "b"], ["n"])
    parts = [node("Add", ["x", "x"], ["s"]), node("LayerNormalization", ["s", "g", "b"], ["n"])]
    return save(chain([fused] if hazard else parts, "n", [constant("g", [1.0] * WIDTH), weight("b", WIDTH)]), folder)


def fused_norm(folder: Path, hazard: bool) -> Path:
    """A residual layer, whose sum and norm the runtime fuses when both operands are known to have the same shape."""
    dims = ["batch", "length", WIDTH]
    middle = [node("MatMul", ["x", "v"], ["p"]), node("Add", ["p", "x"], ["s"])]
    norm = node("LayerNormalization", ["s", "g", "b"], ["y"])
    plain = node("Identity", ["s"], ["y"])
    weights = [weight("v", WIDTH, WIDTH), constant("g", [1.0] * WIDTH), weight("b", WIDTH)]
    nodes = [*middle, norm if hazard else plain]
    used = weights if hazard else weights[:1]
    return save(model(nodes, [tensor("x", dims)], [tensor("y", dims)], used), folder)


def zero_experts(folder: Path, hazard: bool) -> Path:
    """Experts weighed as they are, in float16 against float32."""
    kind, dtype = (TensorProto.FLOAT16, np.float16) if hazard else (TensorProto.FLOAT, np.float32)
    operands = [weight(name, 4, WIDTH, WIDTH, dtype=dtype) for name in ("first", "second")]
    inputs = ["x", "scores", "first", "", "second"]
    product = node("com.microsoft.MoE", inputs, ["y"], k=2, activation_type="silu", normalize_routing_weights=0)
    return save(
        model([product], [rows(dtype=kind), tensor("scores", ["batch", 4], kind)], [rows("y", kind)], operands), folder
    )


HAZARDS = (
    Hazard("TC101", "opset", opset),
    Hazard("TC102", "ir-version", ir_version),
    Hazard("TC103", "failed-conversion", failed_conversion, besides=("TC309",)),
    Hazard("TC104", "foreign", foreign, besides=("TC309",)),
    Hazard("TC105", "unknown-attribute", unknown_attribute),
    Hazard("TC106", "bool-where", no_kernel),
    Hazard("TC107", "elu-on-cuda", falls_back, provider="cuda"),
    Hazard("TC107", "int8-on-cuda", dynamic_int8_on_cuda, provider="cuda"),
    Hazard("TC108", "every-layer", copies_in_every_layer, provider="cuda", besides=("TC107",)),
    Hazard("TC109", "dead-present", dead_present),
    Hazard("TC109", "flat-mask", flat_mask),
    Hazard("TC110", "swish", expanded),
    Hazard("TC110", "group-norm", grouped),
    Hazard("TC111", "norm", slow_norm),
    Hazard("TC111", "norm-made-at-load", fused_norm, run=True),
    Hazard("TC112", "experts", zero_experts, besides=("TC401",)),
)
