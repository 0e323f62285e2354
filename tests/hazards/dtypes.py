"""TC4xx: dtypes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from tests.hazards.building import WIDTH, Hazard, chain, constant, layer, model, node, rows, save, weight


def half_softmax(folder: Path, hazard: bool) -> Path:
    kind = TensorProto.FLOAT16 if hazard else TensorProto.FLOAT
    made = model([node("Softmax", ["x"], ["y"], axis=-1)], [rows("x", kind)], [rows("y", kind)])
    return save(made, folder)


def half_products(folder: Path, hazard: bool) -> Path:
    """LayerNormalization is one of the few that have a float16 kernel; MatMul is not."""
    kind, numbers = TensorProto.FLOAT16, np.float16
    scale = weight("scale", WIDTH, dtype=numbers)
    norm = node("LayerNormalization", ["x", "scale"], ["n" if hazard else "y"], axis=-1)
    nodes, weights = (
        ([norm, layer("n")], [scale, weight("w", WIDTH, WIDTH, dtype=numbers)]) if hazard else ([norm], [scale])
    )
    return save(model(nodes, [rows("x", kind)], [rows("y", kind)], weights), folder)


def bfloat16(folder: Path, hazard: bool) -> Path:
    kind = TensorProto.BFLOAT16 if hazard else TensorProto.FLOAT
    matrix = helper.make_tensor("w", kind, [WIDTH, WIDTH], np.linspace(-1, 1, WIDTH * WIDTH).tolist())
    return save(model([layer()], [rows("x", kind)], [rows("y", kind)], [matrix]), folder)


def double_leak(folder: Path, hazard: bool) -> Path:
    """A NumPy constant made part of the graph float64."""
    if not hazard:
        return save(chain([node("Mul", ["x", "half"], ["n"])], "n", [constant("half", 0.5)]), folder)
    middle = [
        node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
        node("Mul", ["wide", "half"], ["scaled"]),
        node("Cast", ["scaled"], ["n"], to=TensorProto.FLOAT),
    ]
    return save(chain(middle, "n", [constant("half", 0.5, np.float64)]), folder)


def mixed(folder: Path, hazard: bool) -> Path:
    """A converter left the rotary frequencies in float32."""
    frequencies = weight("frequencies", WIDTH, dtype=np.float32 if hazard else np.float16)
    kind = TensorProto.FLOAT16
    made = model([node("Mul", ["x", "frequencies"], ["y"])], [rows("x", kind)], [rows("y", kind)], [frequencies])
    return save(made, folder)


def forbidden(folder: Path, hazard: bool) -> Path:
    """CumSum takes no bools, and Not no floats."""
    kind = TensorProto.FLOAT if hazard else TensorProto.BOOL
    return save(model([node("Not", ["x"], ["y"])], [rows("x", kind)], [rows("y", TensorProto.BOOL)]), folder)


def overflow(folder: Path, hazard: bool) -> Path:
    large = constant("large", -1e9 if hazard else -1e4)
    made = model(
        [node("Cast", ["large"], ["half"], to=TensorProto.FLOAT16), node("Where", ["mask", "x", "half"], ["y"])],
        [rows("mask", TensorProto.BOOL), rows("x", TensorProto.FLOAT16)],
        [rows("y", TensorProto.FLOAT16)],
        [large],
    )
    return save(made, folder)


def wrongly_declared(folder: Path, hazard: bool) -> Path:
    """A converter to float16 changed value_info alone; ONNX's own inference knows no contrib Gelu."""
    made = chain([node("com.microsoft.Gelu", ["x"], ["n"])], "n")
    made.graph.value_info.append(
        helper.make_tensor_value_info("n", TensorProto.FLOAT16 if hazard else TensorProto.FLOAT, ["batch", WIDTH])
    )
    return save(made, folder)


HAZARDS = (
    Hazard("TC401", "softmax", half_softmax),
    Hazard("TC401", "products", half_products),
    Hazard("TC402", "products", bfloat16),
    Hazard("TC403", "numpy-constant", double_leak),
    Hazard("TC404", "rotary", mixed, provider="cuda"),
    Hazard("TC405", "not-of-floats", forbidden),
    Hazard("TC406", "mask", overflow, provider="cuda"),
    Hazard("TC407", "value-info", wrongly_declared),
)
