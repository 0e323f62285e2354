"""TC6xx: caches, masks, rotary operators, training mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from tests.hazards.building import WIDTH, Hazard, chain, constant, linear, model, node, save, tensor, weight

HEADS, HEAD = 4, 16
FEATURES = ["batch", HEADS, "length", HEAD]


def concatenated_cache(folder: Path, hazard: bool) -> Path:
    """present = Concat(past, new), against TensorScatter into a cache of fixed size."""
    past = tensor("past_key", ["batch", HEADS, "past", HEAD])
    present = tensor("present_key", ["batch", HEADS, "total", HEAD])
    if hazard:
        made = model(
            [node("Concat", ["past_key", "k"], ["present_key"], axis=2)], [past, tensor("k", FEATURES)], [present]
        )
        return save(made, folder)
    scatter = node("TensorScatter", ["past_key", "k", "at"], ["present_key"], axis=2)
    inputs = [past, tensor("k", FEATURES), tensor("at", ["batch"], TensorProto.INT64)]
    return save(model([scatter], inputs, [tensor("present_key", ["batch", HEADS, "past", HEAD])], opset=24), folder)


def _masked(masked_score: float, causal: bool = False) -> onnx.ModelProto:
    """Attention under a padding mask, and a causal one too where `causal`."""
    lower = [
        node("Shape", ["scores"], ["size"]),
        node("ConstantOfShape", ["size"], ["ones"], value=constant("one", [1.0])),
        node("Trilu", ["ones"], ["triangle"], upper=0),
        node("Cast", ["triangle"], ["earlier"], to=TensorProto.BOOL),
        node("And", ["wide", "earlier"], ["seen"]),
    ]
    nodes = [
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "kt"], ["scores"]),
        node("Cast", ["attention_mask"], ["kept"], to=TensorProto.BOOL),
        node("Unsqueeze", ["kept", "axes"], ["wide"]),
        *(lower if causal else []),
        node("Where", ["seen" if causal else "wide", "zero", "masked"], ["bias"]),
        node("Add", ["scores", "bias"], ["biased"]),
        node("Softmax", ["biased"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["y"]),
    ]
    inputs = [
        *(tensor(name, FEATURES) for name in "qkv"),
        tensor("attention_mask", ["batch", "length"], TensorProto.INT64),
    ]
    constants = [constant("axes", [1, 2], np.int64), constant("zero", 0.0), constant("masked", masked_score)]
    return model(nodes, inputs, [tensor("y", FEATURES)], constants)


def poisoned_rows(folder: Path, hazard: bool) -> Path:
    return save(_masked(float("-inf") if hazard else -1e9), folder)


def poisoned_causal_rows(folder: Path, hazard: bool) -> Path:
    """The first tokens of a row that is padded on the left see themselves alone, and they are masked."""
    return save(_masked(float("-inf") if hazard else -1e9, causal=True), folder)


def causal_infinity(folder: Path, hazard: bool) -> Path:
    """Minus infinity that depends on sizes alone never masks a whole row; only the hazard reads the padding."""
    if hazard:
        return save(_masked(float("-inf")), folder)
    nodes = [
        node("Shape", ["x"], ["size"]),
        node("ConstantOfShape", ["size"], ["ones"], value=constant("one", [1.0])),
        node("Trilu", ["ones"], ["lower"], upper=0),
        node("Cast", ["lower"], ["kept"], to=TensorProto.BOOL),
        node("Where", ["kept", "zero", "masked"], ["bias"]),
        node("Add", ["x", "bias"], ["biased"]),
        node("Softmax", ["biased"], ["y"], axis=-1),
    ]
    square = ["length", "width"]
    made = model(
        nodes, [tensor("x", square)], [tensor("y", square)], [constant("zero", 0.0), constant("masked", -np.inf)]
    )
    return save(made, folder)


def rotary_for_one(folder: Path, hazard: bool) -> Path:
    """Cosines [1, length, half] from positions that no input gives."""
    first = 1 if hazard else "batch"
    tables = [tensor(name, [first, "length", HEAD // 2]) for name in ("cosines", "sines")]
    rotary = node("RotaryEmbedding", ["x", "cosines", "sines"], ["y"])
    return save(model([rotary], [tensor("x", FEATURES), *tables], [tensor("y", FEATURES)], opset=23), folder)


def _grouped(rotates: bool, bias: bool = False) -> onnx.ModelProto:
    """GroupQueryAttention with positions as an input."""
    flat, past = ["batch", "length", HEADS * HEAD], ["batch", HEADS, "past", HEAD]
    names = ["q", "k", "v", "past_key", "past_value", "seqlens", "total", "cosines", "sines", "position_ids"]
    attention = node(
        "com.microsoft.GroupQueryAttention",
        [*names[:7], *(names[7:] if rotates else ["", "", ""]), *(["bias"] if bias else [])],
        ["y", "present_key", "present_value"],
        num_heads=HEADS,
        kv_num_heads=HEADS,
        do_rotary=int(rotates),
    )
    kind = TensorProto.FLOAT16 if bias else TensorProto.FLOAT
    numbers = np.float16 if bias else np.float32
    inputs = [*(tensor(name, flat, kind) for name in "qkv"), *(tensor(name, past, kind) for name in names[3:5])]
    inputs += [tensor("seqlens", ["batch"], TensorProto.INT32), tensor("total", [], TensorProto.INT32)]
    inputs += [tensor("position_ids", ["batch", "length"], TensorProto.INT64)] if rotates else []
    inputs += [tensor("bias", ["batch", 1, "length", "total"], kind)] if bias else []
    tables = [weight(name, 128, HEAD // 2, dtype=numbers) for name in names[7:9]] if rotates else []
    present = [tensor(f"present_{name}", ["batch", HEADS, "total", HEAD], kind) for name in ("key", "value")]
    return model([attention], inputs, [tensor("y", flat, kind), *present], tables)


def rotates_inside(folder: Path, hazard: bool) -> Path:
    return save(_grouped(rotates=hazard), folder)


def masked_on_cuda(folder: Path, hazard: bool) -> Path:
    dims = [tensor(name, FEATURES, TensorProto.FLOAT16) for name in "qkv"]
    mask = [tensor("mask", ["batch", 1, "length", "length"], TensorProto.BOOL)] if hazard else []
    attention = node("Attention", ["q", "k", "v", *(["mask"] if hazard else [])], ["y"], is_causal=int(not hazard))
    return save(model([attention], [*dims, *mask], [tensor("y", FEATURES, TensorProto.FLOAT16)], opset=23), folder)


def dropout(folder: Path, hazard: bool) -> Path:
    middle = [node("Dropout", ["x", "ratio", "training"], ["n"])]
    return save(chain(middle, "n", [constant("ratio", 0.5), constant("training", hazard, np.bool_)]), folder)


def batch_statistics(folder: Path, hazard: bool) -> Path:
    names = ["scale", "bias", "mean", "var"]
    outputs = ["n", "m2", "v2"] if hazard else ["n"]
    norm = node("BatchNormalization", ["x", *names], outputs, training_mode=int(hazard))
    ones = [constant(name, np.linspace(0.5, 1.5, WIDTH)) for name in names]
    return save(chain([norm], "n", ones), folder)


def noise(folder: Path, hazard: bool) -> Path:
    if not hazard:
        return save(linear(), folder)
    return save(chain([node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"], ["n"])], "n"), folder)


HAZARDS = (
    Hazard("TC601", "concatenated", concatenated_cache),
    Hazard("TC602", "padding", poisoned_rows),
    Hazard("TC602", "causal-is-harmless", causal_infinity),
    Hazard("TC603", "padding", poisoned_causal_rows, run=True, besides=("TC602",)),
    Hazard("TC604", "one-row", rotary_for_one),
    Hazard("TC605", "rotates-inside", rotates_inside),
    Hazard("TC606", "mask-on-cuda", masked_on_cuda, provider="cuda"),
    Hazard("TC607", "dropout", dropout),
    Hazard("TC607", "batch-norm", batch_statistics),
    Hazard("TC608", "noise", noise),
)
