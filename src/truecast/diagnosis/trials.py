"""One run of a session on made-up inputs, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnxruntime as ort

from truecast.diagnosis.feeds import Input, Sizes, feed_shapes, make_feeds, named_sizes
from truecast.runtime.providers import LOAD_ERRORS

QUIET = 4
"""ONNX Runtime's log level for fatal errors only; what fails here is reported as a finding."""
SHOWN_INPUTS = 3
Outputs = Mapping[str, np.ndarray]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Trial:
    """One run: its sizes and shapes, the size of each named axis, the error, outputs that hold NaN or infinity."""

    sizes: Sizes
    inputs: Mapping[str, Shape] = field(default_factory=dict)
    named: Mapping[str, int] = field(default_factory=dict)
    padded: bool = False
    error: str | None = None
    not_finite: tuple[str, ...] = ()
    outputs: Mapping[str, Shape] = field(default_factory=dict)

    def __str__(self) -> str:
        """The shapes of the inputs, those of the first few."""
        shown = [f"{name} {list(shape)}" for name, shape in self.inputs.items()]
        return ", ".join(shown[:SHOWN_INPUTS]) + (", …" if len(shown) > SHOWN_INPUTS else "")


def plan_trial(inputs: Sequence[Input], sizes: Sizes, padded: bool = False) -> Trial:
    """The trial before it is run; only inputs with a free axis are shown, if there are any."""
    shapes = feed_shapes(inputs, sizes)
    free = {value.name for value in inputs if not all(isinstance(dim, int) for dim in value.shape)}
    shown = {name: shape for name, shape in shapes.items() if name in free or not free}
    return Trial(sizes, shown, named_sizes(inputs, sizes), padded)


def run_trial(session: ort.InferenceSession, planned: Trial, bounds: Mapping[str, int]) -> tuple[Trial, Outputs | None]:
    """Runs it; there are no outputs where it failed."""
    run = ort.RunOptions()
    run.log_severity_level = QUIET
    feeds = make_feeds(session.get_inputs(), planned.sizes, bounds, planned.padded)
    try:
        results = session.run(None, feeds, run)
    except LOAD_ERRORS as error:
        return replace(planned, error=first_line(error)), None
    except UnicodeDecodeError as error:
        return replace(planned, error=f"an output holds text that is no UTF-8 ({error.reason})"), None
    except MemoryError:
        return replace(planned, error="there is not enough memory"), None
    outputs = {info.name: r for info, r in zip(session.get_outputs(), results, strict=True) if _is_array(r)}
    broken = tuple(name for name, result in outputs.items() if _not_finite(result))
    shapes = {name: result.shape for name, result in outputs.items()}
    return replace(planned, not_finite=broken, outputs=shapes), outputs


def _is_array(result: object) -> bool:
    return isinstance(result, np.ndarray)


def _not_finite(result: np.ndarray) -> bool:
    return result.dtype.kind == "f" and not bool(np.isfinite(result).all())


def first_line(error: BaseException) -> str:
    """What ONNX Runtime says, without the lines of its stack."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
