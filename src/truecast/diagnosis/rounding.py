"""What the int8 codes that are made of activations at every run leave of them.

Data flow: a file with DynamicQuantizeLinear nodes → the same graph with what they read as further outputs → one run on
made-up inputs → the codes' rounding error beside the power of the usual channel → decibels, by node.

One scale holds a whole tensor, so a channel that reaches far beyond the others takes the codes away from them. Power is
therefore that of the median channel: beside the whole tensor's, the outlier would hide what it costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from truecast.diagnosis.feeds import Sizes, make_feeds
from truecast.runtime.providers import FOLDER_KEY, LOAD_ERRORS

CODES = 255
"""Steps of uint8."""
SMALLEST_POWER = 1e-30


@dataclass(frozen=True)
class Rounding:
    """One activation: the node that makes codes of it, and the usual channel's power over the error's, in decibels."""

    node: str
    decibels: float


def measure_rounding(
    file: Path, options: ort.SessionOptions, execution_provider: str, bounds: Mapping[str, int]
) -> tuple[Rounding, ...]:
    """Every activation that DynamicQuantizeLinear rounds, worst first; none where the graph has no such node.

    `options` are taken over by the session; `bounds` limit ids, as in `make_feeds`.
    """
    model = onnx.load(file, load_external_data=False)
    read = {n.input[0]: n.name or n.output[0] for n in model.graph.node if n.op_type == "DynamicQuantizeLinear"}
    if not read:
        return ()
    known = {value.name for value in (*model.graph.output, *model.graph.input)}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in read if name not in known)
    options.add_session_config_entry(FOLDER_KEY, str(file.parent.resolve()))
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=[execution_provider], enable_fallback=0
        )
        feeds = make_feeds(session.get_inputs(), Sizes(), bounds)
        asked = [name for name in read if name not in feeds]
        values = {**feeds, **dict(zip(asked, session.run(asked, feeds), strict=True))}
    except LOAD_ERRORS:  # the file itself ran; what is only known with more outputs stays unknown
        return ()
    found = (Rounding(node, decibels(np.asarray(values[name]))) for name, node in read.items() if values[name].size)
    return tuple(sorted(found, key=lambda rounding: rounding.decibels))


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
