"""Runs the model in a real session on made-up inputs and records what happened: placement, fallback, times, sizes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime as ort

from truecast.diagnosis.feeds import GRID, Sizes, can_feed, make_feeds
from truecast.diagnosis.kernels import session_keys
from truecast.diagnosis.rounding import Rounding, measure_rounding
from truecast.runtime.providers import (
    ASSIGNMENT_KEY,
    EXACT_ENTRIES,
    LOAD_ERRORS,
    PAIRED_KEY,
    PROVIDERS,
    session_options,
)

KERNEL_EVENT = "_kernel_time"
MICROSECONDS_PER_MS = 1000
EXACT = EXACT_ENTRIES[PAIRED_KEY]
QUIET = 4
"""ONNX Runtime's log level for fatal errors only; what fails here is reported as a finding."""
Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Timing:
    """One node that ran: its name, operator, provider, and milliseconds."""

    name: str
    operator: str
    provider: str
    milliseconds: float


@dataclass(frozen=True)
class Trial:
    """One run: its sizes, the error, outputs that hold NaN or infinity, outputs of other shapes than declared."""

    sizes: Sizes
    padded: bool = False
    error: str | None = None
    not_finite: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Observed:
    """What a session did.

    `refusal` says why there is none. `assigned` counts nodes per execution provider. `timings` are of one warm run.
    `difference` is the largest relative difference of an output with and without ONNX Runtime's optimizer. `roundings`
    are the activations that become int8 codes at every run.
    """

    installed: bool = True
    refusal: str | None = None
    assigned: Mapping[str, int] = field(default_factory=dict)
    timings: tuple[Timing, ...] = ()
    trials: tuple[Trial, ...] = ()
    difference: float | None = None
    roundings: tuple[Rounding, ...] = ()
    load_seconds: float = 0.0

    def ran(self, *operators: str) -> list[Timing]:
        """The nodes of those operators that ran."""
        return [timing for timing in self.timings if timing.operator in operators]


def observe(file: Path, provider: str, entries: Mapping[str, str], bounds: Mapping[str, int]) -> Observed:
    """Loads and runs a model; what it raises becomes part of the answer."""
    wanted = PROVIDERS[provider].execution_provider
    if wanted not in ort.get_available_providers():
        return Observed(installed=False)
    with TemporaryDirectory(prefix="truecast-diagnose-") as folder:
        options = _options(entries)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        started = time.perf_counter()
        try:
            session = ort.InferenceSession(str(file), options, providers=[wanted], enable_fallback=0)
        except LOAD_ERRORS as error:
            return Observed(refusal=first_line(error))
        loaded = Observed(assigned=_assigned(session), load_seconds=time.perf_counter() - started)
        return _run(session, loaded, file, wanted, entries, bounds)


def _run(
    session: ort.InferenceSession,
    loaded: Observed,
    file: Path,
    wanted: str,
    entries: Mapping[str, str],
    bounds: Mapping[str, int],
) -> Observed:
    """The trials of a session: the first sizes with a profile, then the grid, then padding on the left."""
    first, outputs = _try(session, Sizes(), bounds)
    if first is None or outputs is None:
        session.end_profiling()
        return replace(loaded, trials=() if first is None else (first,))
    _try(session, Sizes(), bounds)
    timings = _last_run(Path(session.end_profiling()))
    trials = [first, *(trial for sizes in GRID if (trial := _try(session, sizes, bounds)[0]) is not None)]
    if any("mask" in value.name and len(value.shape) == 2 for value in session.get_inputs()):
        padded = _try(session, Sizes(), bounds, padded=True)[0]
        trials += [padded] if padded is not None else []
    if entries.get(PAIRED_KEY, EXACT) != EXACT:  # int8 activations that were asked for are not the optimizer's doing
        outputs = _outputs(file, wanted, {**entries, PAIRED_KEY: EXACT}, bounds) or outputs
    difference = _difference(outputs, _outputs(file, wanted, entries, bounds, optimize=False))
    roundings = measure_rounding(file, _options(entries), wanted, bounds)
    return replace(loaded, timings=timings, trials=tuple(trials), difference=difference, roundings=roundings)


def _options(entries: Mapping[str, str]) -> ort.SessionOptions:
    """Options with the keys that ONNX Runtime knows of those given; the others are a finding, and have no effect."""
    options = session_options(entries={ASSIGNMENT_KEY: "1"})
    options.log_severity_level = QUIET
    for key, value in entries.items():
        if key in session_keys():
            options.add_session_config_entry(key, value)
    return options


def _assigned(session: ort.InferenceSession) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)


def _try(
    session: ort.InferenceSession, sizes: Sizes, bounds: Mapping[str, int], padded: bool = False
) -> tuple[Trial | None, Outputs | None]:
    """One run; (None, None) when no inputs can be made up for the model."""
    inputs, trial = session.get_inputs(), Trial(sizes, padded)
    if not can_feed(inputs):
        return None, None
    run = ort.RunOptions()
    run.log_severity_level = QUIET
    try:
        results = session.run(None, make_feeds(inputs, sizes, bounds, padded), run)
    except LOAD_ERRORS as error:
        return replace(trial, error=first_line(error)), None
    outputs = {info.name: np.asarray(result) for info, result in zip(session.get_outputs(), results, strict=True)}
    broken = tuple(name for name, result in outputs.items() if _not_finite(result))
    misshapen = tuple(
        f"{info.name} is declared {list(info.shape)} and is {list(outputs[info.name].shape)}"
        for info in session.get_outputs()
        if _contradicts(info.shape, outputs[info.name].shape)
    )
    return replace(trial, not_finite=broken, misshapen=misshapen), outputs


def _not_finite(result: np.ndarray) -> bool:
    return result.dtype.kind == "f" and not bool(np.isfinite(result).all())


def _contradicts(declared: Sequence[int | str | None], got: Sequence[int]) -> bool:
    if not declared:
        return False
    return len(declared) != len(got) or any(isinstance(d, int) and d != g for d, g in zip(declared, got, strict=True))


def _last_run(profile: Path) -> tuple[Timing, ...]:
    """The nodes of the last run in a profile, slowest first."""
    events = json.loads(profile.read_text(encoding="utf-8"))
    starts = [event["ts"] for event in events if event.get("name") == "model_run"]
    return tuple(sorted(_kernels(events, max(starts, default=0)), key=lambda timing: -timing.milliseconds))


def _kernels(events: Sequence[Mapping[str, object]], since: float) -> Iterator[Timing]:
    for event in events:
        name, arguments = str(event.get("name", "")), event.get("args")
        if name.endswith(KERNEL_EVENT) and isinstance(arguments, dict) and _number(event["ts"]) >= since:
            took = _number(event["dur"]) / MICROSECONDS_PER_MS
            yield Timing(name.removesuffix(KERNEL_EVENT), arguments["op_name"], arguments["provider"], took)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _outputs(
    file: Path, wanted: str, entries: Mapping[str, str], bounds: Mapping[str, int], optimize: bool = True
) -> Outputs | None:
    """The outputs with or without ONNX Runtime's optimizer; None where the graph does not run so."""
    options = _options(entries)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(file), options, providers=[wanted], enable_fallback=0)
    except LOAD_ERRORS:
        return None
    return _try(session, Sizes(), bounds)[1]


def _difference(outputs: Outputs, plain: Outputs | None) -> float | None:
    """The largest difference relative to the largest value, over float outputs."""
    if plain is None:
        return None
    found = [0.0]
    for name, result in outputs.items():
        if result.dtype.kind == "f" and result.size and result.shape == plain[name].shape:
            scale = float(np.abs(plain[name]).max()) or 1.0
            found.append(float(np.abs(result.astype(np.float64) - plain[name]).max()) / scale)
    return max(found)


def first_line(error: BaseException) -> str:
    """What ONNX Runtime says, without the lines of its stack."""
    return str(error).strip().splitlines()[0]
