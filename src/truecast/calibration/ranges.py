"""What goes into products, measured on examples: the ranges that int8-static rounds by, and outlying channels.

Data flow: a float graph and feeds → the graph with the inputs of its products as further outputs → their values, one
feed at a time → the ends of every channel → divisors of channels far beyond the others → the range, by its ends or by
the histograms of onnxruntime.quantization and its Entropy or Percentile → `Seen`, by the name of the tensor, and by the
weight that it is multiplied with.

| method | range |
|---|---|
| minmax | the smallest and the largest value seen |
| percentile | what 99.999 % of the values lie in |
| entropy | the one whose codes lose least information, by the divergence of the histograms |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from truecast.checkpoint.model import Array
from truecast.errors import InputError
from truecast.runtime.providers import FOLDER_KEY, LOAD_ERRORS, session_options
from truecast.weights.integers import Range, Seen

PRODUCTS = frozenset({"MatMul", "FusedMatMul"})
ONE_WEIGHT = frozenset({"Transpose", "Cast"})
"""Operators that make a weight of a weight."""
TRANSPOSED = ".transposed"
"""Ending of an initializer that holds a weight with its axes swapped."""
SILENT = 4
"""ONNX Runtime's log level that says nothing of errors: they are raised."""
BINS = 2048
"""Of a histogram; onnxruntime.quantization's own 128 for Entropy are as many as codes, so that nothing is ever cut."""
QUANTIZED_BINS = 128
OUTLIER = 3.0
"""How many times further than the median channel a channel may reach before it is divided: of 2, 3 and 4, the one that
left the least error in MiniLM's embeddings."""
PERCENTILE = 99.999
"""onnxruntime.quantization's own."""

Feeds = Mapping[str, Array]
Progress = Callable[[int], None]
"""Called with the number of feeds done."""


class Ends:
    """The smallest and the largest value of every channel, the last axis."""

    def __init__(self) -> None:
        self.low: dict[str, Array] = {}
        self.high: dict[str, Array] = {}

    def add(self, values: Mapping[str, Array]) -> None:
        """Takes in values of tensors by name, [..., width]."""
        for name, array in values.items():
            rows = array.reshape(-1, array.shape[-1]).astype(np.float32, copy=False)
            low, high = rows.min(0), rows.max(0)
            self.low[name] = np.minimum(self.low.get(name, low), low)
            self.high[name] = np.maximum(self.high.get(name, high), high)

    def divisors(self, name: str) -> Array | None:
        """Powers of two by which channels come near the others, float32 [width]; None where none is far beyond."""
        reach = np.maximum(np.abs(self.low[name]), np.abs(self.high[name]))
        usual = OUTLIER * float(np.median(reach))
        if usual == 0 or not (reach > usual).any():
            return None
        result: Array = np.exp2(np.ceil(np.log2(np.maximum(reach / usual, 1)))).astype(np.float32)
        return result

    def range(self, name: str, divisors: Array | None) -> Range:
        """The range of a tensor, its channels divided."""
        by = 1 if divisors is None else divisors
        return Range(float((self.low[name] / by).min()), float((self.high[name] / by).max()))


class Histograms:
    """onnxruntime.quantization's histograms; `method` is its word, "entropy" or "percentile"."""

    def __init__(self, method: str) -> None:
        from onnxruntime.quantization.calibrate import HistogramCollector  # a second of imports

        self._collector: Any = HistogramCollector(method, False, BINS, QUANTIZED_BINS, PERCENTILE, "same")

    def add(self, values: Mapping[str, Array]) -> None:
        """Takes in float32 values of tensors by name."""
        with redirect_stdout(StringIO()):  # it reports by printing
            self._collector.collect({name: array.reshape(-1) for name, array in values.items()})

    def ranges(self) -> dict[str, Range]:
        """A range for every tensor that was seen."""
        with redirect_stdout(StringIO()):
            found = self._collector.compute_collection_result()
        return {name: Range(float(parts[0]), float(parts[1])) for name, parts in found.items()}


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


def seen_inputs(
    folder: Path, file: str, feeds: Sequence[Feeds], method: str = "minmax", progress: Progress | None = None
) -> dict[str, Seen]:
    """What every weight of a float graph is multiplied with, by the weight's name; see `seen_tensors`."""
    inputs = product_inputs(ir.load(folder / file))
    groups = {weight: min(names) for weight, names in inputs.items() if len(names) == 1}
    several = [name for names in inputs.values() for name in names]
    seen = seen_tensors(folder, file, feeds, method, set(several), progress)
    found = {weight: seen[name] for weight, name in groups.items()}
    for weight in inputs.keys() - groups.keys():  # one weight, several inputs: the widest, and no divisors of one alone
        found[weight] = _widest([seen[name].whole or seen[name].range for name in inputs[weight]])
    return found


def _widest(ranges: Sequence[Range]) -> Seen:
    return Seen(Range(min(one.low for one in ranges), max(one.high for one in ranges)))


def seen_tensors(
    folder: Path,
    file: str,
    feeds: Sequence[Feeds],
    method: str = "minmax",
    tensors: set[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Seen]:
    """What tensors of a float graph were, by name: their ranges, and divisors of channels far beyond the others.

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
    if not feeds:
        raise InputError("Calibration was given no example; give at least one row of inputs.")
    session, ends = opened(model, folder, names), Ends()
    for count, feed in enumerate(feeds, 1):
        ends.add(_values(session, feed, names))
        if progress:
            progress(count)
    divisors = {name: ends.divisors(name) for name in ends.low}
    ranges = {name: ends.range(name, by) for name, by in divisors.items()}
    if method != "minmax":
        ranges = _histogram_ranges(session, feeds, names, method, divisors)
    return {name: Seen(ranges[name], by, ends.range(name, None)) for name, by in divisors.items()}


def _histogram_ranges(
    session: ort.InferenceSession,
    feeds: Sequence[Feeds],
    names: Sequence[str],
    method: str,
    divisors: Mapping[str, Array | None],
) -> dict[str, Range]:
    collector = Histograms(method)
    for feed in feeds:
        values = _values(session, feed, names)
        given = {name: array if divisors[name] is None else array / divisors[name] for name, array in values.items()}
        collector.add(given)
    return collector.ranges()


def opened(model: ir.Model, folder: Path, names: Sequence[str]) -> ort.InferenceSession:
    """A session of `model`, whose data lies in `folder`, that also gives the float32 tensors of those names."""
    graph = model.graph
    produced = {value.name: value for node in graph for value in node.outputs}
    known = {value.name for value in (*graph.inputs, *graph.outputs)}
    for name in names:
        if name in produced and name not in known:
            value = produced[name]
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
            graph.outputs.append(value)
    options = session_options()
    options.log_severity_level = SILENT
    options.add_session_config_entry(FOLDER_KEY, str(folder.resolve()))
    content = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def _values(session: ort.InferenceSession, given: Feeds, names: Sequence[str]) -> dict[str, Array]:
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
