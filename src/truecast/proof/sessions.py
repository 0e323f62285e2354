"""The artifact's graph, run in the ways a proof needs: as shipped, with exact products, and as written.

Exact products: ONNX Runtime multiplies quantized weights with int8 activations where a node's accuracy level allows it.
For 4 bits a session key undoes that, for 8 bits only the attribute does, so the graph is changed in memory; its weights
stay in the memory-mapped file. Products of integers become products of floats there (`integers`). Products that ONNX
Runtime makes of DequantizeLinear and MatMul have a key of their own.
The proof does not trust any of it: int8 activations would fail its tight limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from truecast.artifact import SAVED_NAME, GraphInfo
from truecast.errors import InputError, TruecastError
from truecast.halves.model import Half
from truecast.halves.twin import make_twin
from truecast.proof.experts import float_experts
from truecast.proof.float_cache import coded_bits, float_info, with_float_cache
from truecast.proof.held import load_graph
from truecast.proof.integers import float_products
from truecast.proof.operators import Array
from truecast.runtime.decoder import Decoder
from truecast.runtime.providers import FOLDER_KEY, LEVELS, LOAD_ERRORS, NOTHING, session_options

PREPACKING_KEY = "session.disable_prepacking"
SILENT = 4
"""ONNX Runtime's log level that says nothing of errors: they are raised, and become a check."""
EXECUTION_PROVIDER = "CPUExecutionProvider"

Given = Mapping[str, ort.OrtValue]
"""Arrays that a session takes as they are, by the names of initializers; whoever made them keeps them alive."""
NONE_GIVEN: Given = MappingProxyType({})
Change = Callable[[ir.Model], Given]
"""Changes a graph in memory; returns what its session is to be given."""

RUN_ERRORS = (*LOAD_ERRORS, RuntimeError, TruecastError)
"""What a run of a wrong graph raises: the session's own errors, and RuntimeError where inputs are bound."""


def open_decoder(
    folder: Path,
    info: GraphInfo,
    *,
    exact: bool = False,
    optimize: bool = True,
    threads: int | None = None,
    floats: bool = False,
    products: Change | None = None,
) -> Decoder:
    """A decoder of the artifact's graph, without the limit of the context (rotary thresholds lie beyond some).

    With `floats` a quantized cache is undone. `products` makes products exact in another way than by their kernels.
    Raises InputError when ONNX Runtime does not take the graph.
    """
    options = _options(exact, optimize, threads, info.session_entries)
    undone = floats and coded_bits(info) is not None
    changes: list[Change] = [products or exact_products] if exact else []
    changes += [partial(_without_codes, info=info)] if undone else []
    session = _session(folder, info.file, options, changes)
    known = float_info(info) if undone else info
    return Decoder(session, known.model_copy(update={"context_length": None}))


def open_module(
    folder: Path, info: GraphInfo, *, exact: bool = False, optimize: bool = True, threads: int | None = None
) -> ort.InferenceSession:
    """A session of a graph without a cache; raises InputError when ONNX Runtime does not take it."""
    options = _options(exact, optimize, threads, info.session_entries)
    if optimize:
        options.graph_optimization_level = LEVELS[info.optimization]
    return _session(folder, info.file, options, [exact_products] if exact else [])


def open_twin(
    folder: Path, info: GraphInfo, half: Half, watched: bool = False
) -> tuple[ort.InferenceSession, list[str]]:
    """A session of the float32 twin of a graph of 16 bits, each result rounded.

    `watched` makes every rounded value an output; their names come along. Raises InputError as `open_module` does.
    """
    rounded: list[str] = []

    def change(model: ir.Model) -> Given:
        names = set(make_twin(model, half).values())
        values = {value.name: value for node in model.graph for value in node.outputs if value.name in names}
        rounded.extend(name or "" for name in values)
        if watched:
            given = {value.name for value in model.graph.outputs}
            model.graph.outputs.extend(value for name, value in values.items() if name not in given)
        return NONE_GIVEN

    options = _options(False, True, None, info.session_entries)
    options.graph_optimization_level = LEVELS[info.optimization]
    return _session(folder, info.file, options, [change]), rounded


def open_saved(folder: Path, info: GraphInfo) -> ort.InferenceSession:
    """A session of the graph as ONNX Runtime rewrote and saved it; raises InputError as `open_module` does."""
    path = str(folder / SAVED_NAME)
    return _load(path, _options(False, False, None, info.session_entries), path)


def declared(session: ort.InferenceSession, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The feeds that a session takes, floats in the dtype that its graph declares."""
    taken = {value.name: value.type for value in session.get_inputs()}
    halves = {name for name, kind in taken.items() if kind == "tensor(float16)"}
    return {n: array.astype(np.float16) if n in halves else array for n, array in feeds.items() if n in taken}


def session_of(model: ir.Model, folder: Path, *, optimize: bool = True) -> ort.InferenceSession:
    """A session of a changed copy of the artifact's graph, its weights taken from `folder`, with exact products."""
    options = _options(True, optimize, None)
    options.add_session_config_entry(FOLDER_KEY, str(folder.resolve()))
    return _load(graph_bytes(model), options, "the changed graph")


def session_as_written(model: ir.Model, folder: Path) -> ort.InferenceSession:
    """The same with the products that the graph asks for."""
    options = _options(False, True, None)
    options.add_session_config_entry(FOLDER_KEY, str(folder.resolve()))
    return _load(graph_bytes(model), options, "the changed graph")


def _options(
    exact: bool, optimize: bool, threads: int | None, entries: Mapping[str, str] = NOTHING
) -> ort.SessionOptions:
    options = session_options(threads, exact=exact, entries=entries)
    options.log_severity_level = SILENT
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def exact_products(model: ir.Model) -> Given:
    """Makes every product of quantized weights take float activations."""
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes.add(ir.AttrInt64("accuracy_level", 0))
    float_experts(model)
    float_products(model)
    return NONE_GIVEN


def _without_codes(model: ir.Model, info: GraphInfo) -> Given:
    with_float_cache(model, info)
    return NONE_GIVEN


def graph_bytes(model: ir.Model) -> bytes:
    """The graph as ONNX Runtime reads it; the weights stay in their file."""
    serialized: bytes = ir.to_proto(model).SerializeToString()
    return serialized


def _session(folder: Path, file: str, options: ort.SessionOptions, changes: Sequence[Change]) -> ort.InferenceSession:
    if not changes:
        return _load(str(folder / file), options, str(folder / file))
    model = load_graph(folder, file)
    given = {name: value for change in changes for name, value in change(model).items()}
    for name, value in given.items():
        options.add_initializer(name, value)
    if given:  # a kernel's own copy in its own layout would take their memory twice
        options.add_session_config_entry(PREPACKING_KEY, "1")
    options.add_session_config_entry(FOLDER_KEY, str(folder.resolve()))
    return _load(graph_bytes(model), options, str(folder / file))


def _load(model: str | bytes, options: ort.SessionOptions, name: str) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(model, options, providers=[EXECUTION_PROVIDER], enable_fallback=0)
    except LOAD_ERRORS as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"ONNX Runtime cannot load {name}: {reason}") from error
