"""What the int8 codes that are made of activations at every run leave of them.

Data flow: a file with DynamicQuantizeLinear nodes → the same graph with what they read as further outputs → one run on
made-up inputs → the codes' rounding error beside the power of the usual channel → decibels, by node.

One scale holds a whole tensor, so a channel that reaches far beyond the others takes the codes away from them. Power is
therefore that of the median channel: beside the whole tensor's, the outlier would hide what it costs. Whether that
reaches the answer is a second question: the graph is run once more with the products in float.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from truecast.diagnosis.feeds import make_feeds
from truecast.diagnosis.trials import Outputs, Trial, run_trial
from truecast.runtime.providers import FOLDER_KEY, LOAD_ERRORS

ROUNDING = "DynamicQuantizeLinear"
FLOAT_PRODUCT = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
CODES = 255
"""Steps of uint8."""
SMALLEST_POWER = 1e-30


@dataclass(frozen=True)
class Rounding:
    """One activation: the node that makes codes of it, and the usual channel's power over the error's, in decibels."""

    node: str
    decibels: float


def measure_rounding(
    file: Path, options: ort.SessionOptions, execution_provider: str, trial: Trial, bounds: Mapping[str, int]
) -> tuple[Rounding, ...]:
    """Every activation that DynamicQuantizeLinear rounds, worst first; none where the graph has no such node.

    `options` are taken over by the session; `trial` is a run that worked; `bounds` limit ids, as in `make_feeds`.
    """
    model = onnx.load(file, load_external_data=False)
    read = {n.input[0]: n.name or n.output[0] for n in model.graph.node if n.op_type == ROUNDING}
    if not read:
        return ()
    known = {value.name for value in (*model.graph.output, *model.graph.input)}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in read if name not in known)
    try:
        session = _opened(model, file, options, execution_provider)
        feeds = make_feeds(session.get_inputs(), trial.sizes, bounds)
        asked = [name for name in read if name not in feeds]
        made = session.run(asked, feeds) if asked else []  # a run that is asked for nothing returns everything
        values = {**feeds, **dict(zip(asked, made, strict=True))}
    except LOAD_ERRORS:  # the file itself ran; what is only known with more outputs stays unknown
        return ()
    found = (Rounding(node, decibels(np.asarray(values[name]))) for name, node in read.items() if values[name].size)
    return tuple(sorted(found, key=lambda rounding: rounding.decibels))


def _opened(
    model: onnx.ModelProto, file: Path, options: ort.SessionOptions, execution_provider: str
) -> ort.InferenceSession:
    """A session of a changed graph whose external data lies where the file's does."""
    options.add_session_config_entry(FOLDER_KEY, str(file.parent.resolve()))
    return ort.InferenceSession(model.SerializeToString(), options, providers=[execution_provider], enable_fallback=0)


def kept_without_rounding(
    file: Path,
    options: ort.SessionOptions,
    execution_provider: str,
    trial: Trial,
    bounds: Mapping[str, int],
    outputs: Outputs,
) -> float | None:
    """The least cosine of a float output with that of the same graph whose activations are not rounded.

    None where that graph does not run: what rounding costs is then not known.
    """
    model = onnx.load(file, load_external_data=False)
    _unround(model.graph)
    try:
        session = _opened(model, file, options, execution_provider)
    except LOAD_ERRORS:
        return None
    exact = run_trial(session, trial, bounds)[1]
    if exact is None:
        return None
    pairs = [(held, exact[name]) for name, held in outputs.items() if held.dtype.kind == "f" and held.size]
    return min((_cosine(held, other) for held, other in pairs if held.shape == other.shape), default=None)


def _cosine(held: np.ndarray, other: np.ndarray) -> float:
    left, right = held.astype(np.float64).reshape(-1), other.astype(np.float64).reshape(-1)
    scale = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / scale if scale else 1.0


def _unround(graph: onnx.GraphProto) -> None:
    """Lets every integer product of rounded activations take them as they are, in units of their scale.

    MatMulInteger((q - z), (b - y)) becomes MatMul(x / s, b - y), whose results are the same but for the rounding of q.
    """
    made = {node.output[0]: node for node in graph.node if node.op_type == ROUNDING}
    changed = {}
    for node in graph.node:
        if node.op_type in FLOAT_PRODUCT and node.input[0] in made and _has_one_zero(node, graph):
            changed[node.output[0]] = list(_float_product(node, made[node.input[0]]))
    nodes = [each for node in graph.node for each in changed.get(node.output[0] if node.output else "", [node])]
    infos = [info for info in graph.value_info if info.name not in changed]
    kept = onnx.GraphProto(node=nodes, value_info=infos)
    graph.ClearField("node")
    graph.ClearField("value_info")
    graph.MergeFrom(kept)


def _has_one_zero(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Whether the weight's zero points, if any, broadcast over the weight: one, or one for each column of a matrix."""
    name = node.input[3] if len(node.input) > 3 else ""
    sizes = next((list(tensor.dims) for tensor in graph.initializer if tensor.name == name), [])
    return node.op_type == "MatMulInteger" or prod(sizes) == 1


def _float_product(node: onnx.NodeProto, rounding: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    name, weight = node.output[0], node.input[1]
    zero = node.input[3] if len(node.input) > 3 else ""
    yield onnx.helper.make_node("Div", [rounding.input[0], rounding.output[1]], [f"{name}/activation"])
    yield onnx.helper.make_node("Cast", [weight], [f"{name}/codes"], to=onnx.TensorProto.FLOAT)
    operand = f"{name}/codes"
    if zero:
        yield onnx.helper.make_node("Cast", [zero], [f"{name}/zero"], to=onnx.TensorProto.FLOAT)
        yield onnx.helper.make_node("Sub", [operand, f"{name}/zero"], [f"{name}/weight"])
        operand = f"{name}/weight"
    product = onnx.helper.make_node(FLOAT_PRODUCT[node.op_type], [f"{name}/activation", operand], [name])
    product.attribute.extend(node.attribute)
    yield product


def decibels(activation: np.ndarray) -> float:
    """The median channel's power over the error of uint8 codes as DynamicQuantizeLinear makes them, over channels last.

    Source of the codes: ONNX's specification of DynamicQuantizeLinear.
    """
    rows = np.atleast_2d(activation).reshape(-1, activation.shape[-1] if activation.ndim else 1).astype(np.float64)
    low, high = min(float(rows.min()), 0.0), max(float(rows.max()), 0.0)
    scale = (high - low) / CODES or 1.0
    zero = np.clip(np.rint(-low / scale), 0, CODES)
    held = (np.clip(np.rint(rows / scale) + zero, 0, CODES) - zero) * scale
    power = float(np.median(np.mean(rows**2, axis=0)))
    noise = float(np.mean((rows - held) ** 2))
    return float(10 * np.log10(max(power, SMALLEST_POWER) / max(noise, SMALLEST_POWER)))
