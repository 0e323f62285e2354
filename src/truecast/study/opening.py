"""Opening a variant: what can be called with a batch and gives named outputs, the same for PyTorch and ONNX Runtime.

Nothing here imports PyTorch; `baselines` does, for the variants that are PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from truecast.artifact import MANIFEST_NAME, read_manifest
from truecast.diagnosis.loading import find_graph
from truecast.runtime.providers import open_session, require_kernels
from truecast.study.feeds import Feeds, chosen

Outputs = dict[str, npt.NDArray[Any]]
FLOATS: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}
INTEGERS: Mapping[str, type[np.generic]] = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


class Opened(Protocol):
    """A model that is loaded."""

    def prepare(self, feeds: Feeds) -> Callable[[], Any]:
        """A call over one batch, with all that is not the model's own work done before."""

    def named(self, result: Any) -> Outputs:
        """The float outputs of a call by name, as float32 on the processor."""


class OnnxModel:
    """An ONNX graph in a session."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._inputs = {value.name: value.type for value in session.get_inputs()}
        self._outputs = [value.name for value in session.get_outputs()]

    def prepare(self, feeds: Feeds) -> Callable[[], Any]:
        """A run of the session; inputs are brought to the types that the graph declares."""
        given = {
            name: value.astype({**INTEGERS, **FLOATS}.get(self._inputs[name], np.int64), copy=False)
            for name, value in chosen(feeds, self._inputs).items()
        }
        return lambda: self._session.run(None, given)

    def named(self, result: Any) -> Outputs:
        """The float outputs by name."""
        pairs = zip(self._outputs, result, strict=True)
        return {name: value.astype(np.float32, copy=False) for name, value in pairs if value.dtype.kind == "f"}


def open_graph(place: Path, provider: str, threads: int) -> OnnxModel:
    """The graph of an artifact with its session keys, or an ONNX file as it is; raises InputError as opening does."""
    entries: Mapping[str, str] = {}
    if (place / MANIFEST_NAME).is_file():
        graph = read_manifest(place).graph
        require_kernels(place, graph.providers, provider)
        place, entries = place / graph.file, graph.session_entries
    return OnnxModel(open_session(find_graph(place), provider, threads, entries=entries))
