"""The ranges of what goes into products, measured on examples: what int8-static rounds its inputs by.

Data flow: a float graph and feeds → the graph with the inputs of its products as further outputs → their values, one
feed at a time → MinMax, or the histograms of onnxruntime.quantization and its Entropy or Percentile → a `Range` by the
name of the tensor, and by the weight that it is multiplied with.

| method | range |
|---|---|
| minmax | the smallest and the largest value seen |
| percentile | what 99.999 % of the values lie in |
| entropy | the one whose codes lose least information, by the divergence of the histograms |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from truecast.checkpoint.model import Array
from truecast.errors import InputError
from truecast.runtime.providers import LOAD_ERRORS, session_options
from truecast.weights.integers import Range

PRODUCTS = frozenset({"MatMul", "FusedMatMul"})
ONE_WEIGHT = frozenset({"Transpose", "Cast"})
"""Operators that make a weight of a weight."""
TRANSPOSED = ".transposed"
"""Ending of an initializer that holds a weight with its axes swapped."""
FOLDER_KEY = "session.model_external_initializers_file_folder_path"
"""Where a graph given as bytes finds its data file."""
BINS = 2048
"""Of a histogram; onnxruntime.quantization's own 128 for Entropy are as many as codes, so that nothing is ever cut."""
QUANTIZED_BINS = 128
PERCENTILE = 99.999
"""onnxruntime.quantization's own."""

Feeds = Mapping[str, Array]
Progress = Callable[[int], None]
"""Called with the number of feeds done."""


class Collector(Protocol):
    """Takes in the values of tensors, and makes ranges of what it saw."""

    def add(self, values: Mapping[str, Array]) -> None:
        """Float32 values of tensors by name."""

    def ranges(self) -> dict[str, Range]:
        """A range for every tensor that was seen."""


class MinMax:
    """The smallest and the largest value."""

    def __init__(self) -> None:
        self._seen: dict[str, Range] = {}

    def add(self, values: Mapping[str, Array]) -> None:
        """See `Collector`."""
        for name, array in values.items():
            new = Range(float(array.min()), float(array.max()))
            old = self._seen.get(name, new)
            self._seen[name] = Range(min(old.low, new.low), max(old.high, new.high))

    def ranges(self) -> dict[str, Range]:
        """See `Collector`."""
        return dict(self._seen)


class Histograms:
    """onnxruntime.quantization's histograms; `method` is its word, "entropy" or "percentile"."""

    def __init__(self, method: str) -> None:
        from onnxruntime.quantization.calibrate import HistogramCollector  # a second of imports

        self._collector: Any = HistogramCollector(method, False, BINS, QUANTIZED_BINS, PERCENTILE, "same")

    def add(self, values: Mapping[str, Array]) -> None:
        """See `Collector`."""
        with redirect_stdout(StringIO()):  # it reports by printing
            self._collector.collect({name: array.reshape(-1) for name, array in values.items()})

    def ranges(self) -> dict[str, Range]:
        """See `Collector`."""
        with redirect_stdout(StringIO()):
            found = self._collector.compute_collection_result()
        return {name: Range(float(parts[0]), float(parts[1])) for name, parts in found.items()}


def collector_of(method: str) -> Collector:
    """The collector of "minmax", "entropy" or "percentile"."""
    return MinMax() if method == "minmax" else Histograms(method)


def product_inputs(model: ir.Model) -> dict[str, set[str]]:
    """Of a float graph: the tensors that are multiplied with a weight, by the weight's name."""
    found: dict[str, set[str]] = {}
    for node in model.graph:
        weight = _weight(node.inputs[1]) if node.op_type in PRODUCTS else None
        if weight is not None and node.inputs[0] is not None:
            found.setdefault(weight, set()).add(node.inputs[0].name or "")
    return found


def _weight(value: ir.Value | None) -> str | None:
    """The name of the initializer that a value is made of, or None for an activation."""
    while value is not None and not value.is_initializer():
        node = value.producer()
        value = node.inputs[0] if node is not None and node.op_type in ONE_WEIGHT else None
    return None if value is None else (value.name or "").removesuffix(TRANSPOSED)


def weight_ranges(
    folder: Path, file: str, feeds: Iterable[Feeds], method: str = "minmax", progress: Progress | None = None
) -> dict[str, Range]:
    """The range of what every weight is multiplied with, by the weight's name; see `tensor_ranges`."""
    inputs = product_inputs(ir.load(folder / file))
    tensors = {name for names in inputs.values() for name in names}
    ranges = tensor_ranges(folder, file, feeds, method, tensors, progress)
    return {weight: _widest([ranges[name] for name in names]) for weight, names in inputs.items()}


def _widest(ranges: Sequence[Range]) -> Range:
    return Range(min(one.low for one in ranges), max(one.high for one in ranges))


def tensor_ranges(
    folder: Path,
    file: str,
    feeds: Iterable[Feeds],
    method: str = "minmax",
    tensors: set[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Range]:
    """Ranges of tensors of a float graph, by name.

    Args:
        folder: holds the graph and its data file.
        file: the graph's name.
        feeds: inputs of the graph, one run each.
        method: "minmax", "entropy" or "percentile".
        tensors: names; None for all that go into products with weights.
        progress: called after every feed.

    Raises:
        InputError: there are no feeds, the graph does not take one, or a value is NaN or infinity.
    """
    model = ir.load(folder / file)
    every = {name for found in product_inputs(model).values() for name in found}
    names = sorted(every if tensors is None else tensors)
    session = _opened(model, folder, names)
    collector, count = collector_of(method), 0
    for count, feed in enumerate(feeds, 1):
        collector.add(_values(session, feed, names))
        if progress:
            progress(count)
    if not count:
        raise InputError("Calibration was given no example; give at least one row of inputs.")
    return collector.ranges()


def _opened(model: ir.Model, folder: Path, names: list[str]) -> ort.InferenceSession:
    """A session that also gives the tensors of those names."""
    graph = model.graph
    produced = {value.name: value for node in graph for value in node.outputs}
    known = {value.name for value in (*graph.inputs, *graph.outputs)}
    for name in names:
        if name in produced and name not in known:
            value = produced[name]
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
            graph.outputs.append(value)
    options = session_options()
    options.add_session_config_entry(FOLDER_KEY, str(folder.resolve()))
    content = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def _values(session: ort.InferenceSession, given: Feeds, names: list[str]) -> dict[str, Array]:
    """The tensors' values for one feed; a tensor may be an input of the graph."""
    taken = {value.name for value in session.get_inputs()}
    asked = [name for name in names if name not in taken]
    try:
        results = session.run(asked, {name: array for name, array in given.items() if name in taken})
    except (*LOAD_ERRORS, ValueError) as error:
        raise InputError(f"The model does not take a calibration example: {str(error).splitlines()[0]}.") from error
    values = dict(zip(asked, results, strict=True)) | {name: given[name] for name in names if name in taken}
    for name, array in values.items():
        if not np.isfinite(array).all():
            raise InputError(f"A calibration example makes {name} NaN or infinity; leave it out.")
    return {name: array for name, array in values.items() if array.size}
