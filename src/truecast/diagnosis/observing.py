"""Runs the model in a real session on made-up inputs and records what happened: placement, fallback, times, sizes."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime as ort

from truecast.diagnosis.feeds import FIRST_TRIES, sizes_around, why_not
from truecast.diagnosis.kernels import session_keys
from truecast.diagnosis.rounding import Rounding, kept_without_rounding, measure_rounding
from truecast.diagnosis.trials import QUIET, Outputs, Trial, first_line, plan_trial, run_trial
from truecast.runtime.providers import (
    ASSIGNMENT_KEY,
    EXACT_ENTRIES,
    LOAD_ERRORS,
    PAIRED_KEY,
    PRECISE_ENTRIES,
    PROVIDERS,
    session_options,
)

INTEGER_PRODUCT = re.compile("Integer|QLinear|QGemm|QAttention|DynamicQuantizeMatMul|DynamicQuantizeLSTM")
"""Operators whose kernels multiply bytes."""
KERNEL_EVENT = "_kernel_time"
MICROSECONDS_PER_MS = 1000
EXACT = EXACT_ENTRIES[PAIRED_KEY]


@dataclass(frozen=True)
class Timing:
    """One node that ran: its name, operator, provider, and milliseconds."""

    name: str
    operator: str
    provider: str
    milliseconds: float


@dataclass(frozen=True)
class Observed:
    """What a session did, as far as it came.

    `refusal` says why there is none. `assigned` counts nodes per execution provider. `unfed` says why no inputs could
    be made up. `failed` are the first trials that the model refused, `trials` the one that worked and those around it,
    or none. `timings` are of one warm run. `difference` is the largest relative difference of an output with and
    without ONNX Runtime's optimizer, `saturation` that with this processor's integer products and with exact ones.
    `roundings` are the activations that become int8 codes at every run, and `kept` the least cosine of an output with
    that of the same graph whose activations are not rounded. `ended` says what was being done when the process was
    ended or broke down, and `crashed` that it did so by itself.
    """

    installed: bool = True
    refusal: str | None = None
    assigned: Mapping[str, int] = field(default_factory=dict)
    unfed: str | None = None
    failed: tuple[Trial, ...] = ()
    trials: tuple[Trial, ...] = ()
    timings: tuple[Timing, ...] = ()
    difference: float | None = None
    saturation: float | None = None
    roundings: tuple[Rounding, ...] = ()
    kept: float | None = None
    ended: str | None = None
    crashed: bool = False
    load_seconds: float = 0.0

    def ran(self, *operators: str) -> list[Timing]:
        """The nodes of those operators that ran."""
        return [timing for timing in self.timings if timing.operator in operators]


@dataclass(frozen=True)
class Subject:
    """What is observed: a file on a provider with session keys; `bounds` limit ids, as in `make_feeds`."""

    file: Path
    provider: str
    entries: Mapping[str, str]
    bounds: Mapping[str, int]

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime's name of the provider."""
        return PROVIDERS[self.provider].execution_provider


Tell = Callable[[str, Observed | None], None]
"""Called before each step with its name and all that is known until then."""


def silent(step: str, known: Observed | None) -> None:
    """Tells nobody."""


def observe(subject: Subject, tell: Tell = silent) -> Observed:
    """Loads and runs a model; what it raises becomes part of the answer."""
    if subject.execution_provider not in ort.get_available_providers():
        return Observed(installed=False)
    tell("loading it", Observed())
    with TemporaryDirectory(prefix="truecast-diagnose-") as folder:
        options = _options(subject.entries)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        started = time.perf_counter()
        try:
            session = _open(subject, options)
        except LOAD_ERRORS as error:
            return Observed(refusal=first_line(error))
        loaded = Observed(assigned=_assigned(session), load_seconds=time.perf_counter() - started)
        return _run(session, loaded, subject, tell)


def _run(session: ort.InferenceSession, known: Observed, subject: Subject, tell: Tell) -> Observed:
    inputs = session.get_inputs()
    if (reason := why_not(inputs, FIRST_TRIES[0])) is not None:
        return replace(known, unfed=reason)
    known, outputs = _first_that_works(session, known, subject, tell)
    if outputs is None:
        return known
    base = known.trials[0]
    tell(f"a second run at {base}", known)
    run_trial(session, base, subject.bounds)
    known = replace(known, timings=_last_run(Path(session.end_profiling())))
    for planned in _around(inputs, base):
        tell(f"a run at {planned}", known)
        known = replace(known, trials=(*known.trials, run_trial(session, planned, subject.bounds)[0]))
    return _compared(known, outputs, subject, tell)


def _first_that_works(
    session: ort.InferenceSession, known: Observed, subject: Subject, tell: Tell
) -> tuple[Observed, Outputs | None]:
    """Tries sizes in turn, with positive floats where others give NaN; where none works, what they failed with."""
    met: set[str] = set()
    for sizes in FIRST_TRIES:
        planned = plan_trial(session.get_inputs(), sizes)
        if str(planned.inputs) in met or why_not(session.get_inputs(), sizes) is not None:
            continue
        met.add(str(planned.inputs))
        tell(f"a run at {planned}", known)
        trial, outputs = run_trial(session, planned, subject.bounds)
        if trial.not_finite:
            positive = plan_trial(session.get_inputs(), replace(sizes, positive=True))
            second, others = run_trial(session, positive, subject.bounds)
            trial, outputs = (second, others) if others is not None and not second.not_finite else (trial, outputs)
        if outputs is not None:
            return replace(known, trials=(trial,)), outputs
        known = replace(known, failed=(*known.failed, trial))
    return known, None


def _around(inputs: Sequence[ort.NodeArg], base: Trial) -> Iterator[Trial]:
    """Trials near one that worked, each different from it, and one with padding on the left."""
    met = {str(base.inputs)}
    for sizes in sizes_around(base.sizes):
        planned = plan_trial(inputs, sizes)
        if str(planned.inputs) not in met and why_not(inputs, sizes) is None:
            met.add(str(planned.inputs))
            yield planned
    if any("mask" in v.name and len(v.shape) == 2 and not isinstance(v.shape[1], int) for v in inputs):
        yield replace(plan_trial(inputs, base.sizes), padded=True)


def _compared(known: Observed, outputs: Outputs, subject: Subject, tell: Tell) -> Observed:
    """The outputs of the first trial against those without the optimizer and without rounded activations."""
    base = known.trials[0]
    tell("a run without the optimizer", known)
    exact = replace(subject, entries={**subject.entries, PAIRED_KEY: EXACT})
    if subject.entries.get(PAIRED_KEY, EXACT) != EXACT:  # int8 activations that were asked for are not the optimizer's
        outputs = _outputs(exact, base) or outputs
    known = replace(known, difference=_difference(outputs, _outputs(subject, base, optimize=False)))
    if any(INTEGER_PRODUCT.search(timing.operator) for timing in known.timings):
        tell("a run with exact integer products", known)
        precise = replace(subject, entries={**subject.entries, **PRECISE_ENTRIES})
        known = replace(known, saturation=_moved(outputs, _outputs(precise, base)))
    tell("a run that shows rounded activations", known)
    options = _options(subject.entries)
    roundings = measure_rounding(subject.file, options, subject.execution_provider, base, subject.bounds)
    kept = None
    if roundings:
        options = _options(subject.entries)
        kept = kept_without_rounding(subject.file, options, subject.execution_provider, base, subject.bounds, outputs)
    return replace(known, roundings=roundings, kept=kept)


def _options(entries: Mapping[str, str]) -> ort.SessionOptions:
    """Options with the keys that ONNX Runtime knows of those given; the others are a finding, and have no effect."""
    options = session_options(entries={ASSIGNMENT_KEY: "1"})
    options.log_severity_level = QUIET
    for key, value in entries.items():
        if key in session_keys():
            options.add_session_config_entry(key, value)
    return options


def _open(subject: Subject, options: ort.SessionOptions) -> ort.InferenceSession:
    return ort.InferenceSession(str(subject.file), options, providers=[subject.execution_provider], enable_fallback=0)


def _assigned(session: ort.InferenceSession) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)


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


def _outputs(subject: Subject, trial: Trial, optimize: bool = True) -> Outputs | None:
    """The outputs with or without ONNX Runtime's optimizer; None where the graph does not run so."""
    options = _options(subject.entries)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = _open(subject, options)
    except LOAD_ERRORS:
        return None
    return run_trial(session, trial, subject.bounds)[1]


def _moved(outputs: Outputs, exact: Outputs | None) -> float | None:
    """The largest relative difference; 1 where whole numbers, such as the chosen class, are others."""
    if exact is None:
        return None
    whole = [name for name, result in outputs.items() if result.dtype.kind in "iub"]
    others = any(not np.array_equal(outputs[name], exact[name]) for name in whole)
    return 1.0 if others else _difference(outputs, exact) or 0.0


def _difference(outputs: Outputs, plain: Outputs | None) -> float | None:
    """The largest difference relative to the largest value, over float outputs; None where there are none."""
    if plain is None or not any(result.dtype.kind == "f" for result in outputs.values()):
        return None
    found = [0.0]
    for name, result in outputs.items():
        if result.dtype.kind == "f" and result.size and result.shape == plain[name].shape:
            scale = float(np.abs(plain[name]).max()) or 1.0
            found.append(float(np.abs(result.astype(np.float64) - plain[name]).max()) / scale)
    return max(found)
