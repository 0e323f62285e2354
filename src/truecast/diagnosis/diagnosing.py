"""Looks at one file: gathers the evidence, asks every rule, sorts what they found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path

import onnxruntime as ort

from truecast.diagnosis.apart import Ended, call_apart
from truecast.diagnosis.evidence import Evidence
from truecast.diagnosis.host import this_host
from truecast.diagnosis.loading import find_graph, read_model
from truecast.diagnosis.model import Diagnosis, Finding, Severity
from truecast.diagnosis.observing import Observed, Subject, observe
from truecast.diagnosis.rules import RULES, findings_of
from truecast.diagnosis.schemas import standard
from truecast.diagnosis.settings import read_settings
from truecast.errors import InputError
from truecast.runtime.providers import PROVIDERS

RUN_SECONDS = 60.0
"""What each run may take unless the caller says otherwise."""
UNKNOWN_STEPS = 0
"""Runs in all: it depends on what the model takes."""
Progress = Callable[[str, int, int], None]
ORDER = tuple(Severity)
NOTHING: Mapping[str, str] = {}


def diagnose(
    path: Path | str,
    provider: str = "cpu",
    run: bool = False,
    session: Mapping[str, str] = NOTHING,
    seconds: float | None = RUN_SECONDS,
    progress: Progress | None = None,
) -> Diagnosis:
    """Looks for what goes wrong in silence with an ONNX file on a provider.

    Args:
        path: an ONNX file, a folder with one, or an artifact.
        provider: where it is meant to run; it need not be installed unless `run`.
        run: whether to load and run it too, on made-up inputs.
        session: session keys that it is meant to run with.
        seconds: what each run may take in a process of its own, after which it is ended and what is known until then
            is kept; None runs it in this process, without a limit.
        progress: told each step of a run as it begins, with the number of those before it.

    Raises:
        InputError: the file is missing, is no ONNX model, or the provider has no such name.
    """
    if provider not in PROVIDERS:
        raise InputError(f"There is no provider {provider!r}; choose one of {', '.join(PROVIDERS)}.")
    evidence = gather(Path(path), provider, session)
    if run:
        evidence = replace(evidence, observed=_observed(evidence, seconds, progress))
    found = sorted(findings_of(RULES, evidence), key=_rank)
    return Diagnosis(evidence.path, provider, tuple(found), _facts(evidence), tuple(_notes(evidence)))


def _observed(evidence: Evidence, seconds: float | None, progress: Progress | None) -> Observed:
    """What a session does with the model, in a process of its own if there is a limit of time."""
    subject = Subject(evidence.path.resolve(), evidence.provider, evidence.settings.entries, id_bounds(evidence))
    if seconds is None:
        return observe(subject)
    steps = count()

    def watch(step: str) -> None:
        if progress is not None:
            progress(f"Running it: {step}", next(steps), UNKNOWN_STEPS)

    result = call_apart(observe, (subject,), seconds, watch)
    if isinstance(result, Ended):
        known = result.known if isinstance(result.known, Observed) else Observed()
        return replace(known, ended=f"{result.step} {result.reason}", crashed=result.crashed)
    return result if isinstance(result, Observed) else Observed()


def gather(path: Path, provider: str = "cpu", session: Mapping[str, str] = NOTHING) -> Evidence:
    """The evidence that needs no session."""
    file = find_graph(path)
    return Evidence(file, read_model(file), provider, read_settings(file.parent, session), this_host())


def id_bounds(evidence: Evidence) -> dict[str, int]:
    """The rows of the table that each input indexes, by the input's name."""
    bounds: dict[str, int] = {}
    for node in evidence.nodes:
        value = node.inputs[1] if node.op_type in ("Gather", "GatherBlockQuantized") else None
        table = evidence.dims(node.inputs[0]) if value is not None and value.is_graph_input() else None
        if value is not None and table and isinstance(table[0], int):
            bounds[value.name or ""] = min(table[0], bounds.get(value.name or "", table[0]))
    return bounds


def _rank(finding: Finding) -> tuple[int, str]:
    return ORDER.index(finding.severity), finding.code


def _facts(evidence: Evidence) -> dict[str, str | int]:
    used, opsets = {standard(node.domain) for node in evidence.nodes}, sorted(evidence.opsets.items())
    facts: dict[str, str | int] = {
        "opset": evidence.opsets.get("", 0),
        "opsets": ", ".join(f"{name} {number}".strip() for name, number in opsets if name in used),
        "ir_version": evidence.model.ir_version,
        "producer": " ".join(filter(None, (evidence.model.producer_name, evidence.model.producer_version)))
        or "unknown",
        "nodes": len(evidence.nodes),
        "weights": len(evidence.weights),
        "weight_bytes": sum(weight.nbytes for weight in evidence.weights),
        "onnxruntime": ort.__version__,
        "int8_products": "saturate here" if evidence.host.saturates else "exact here",
    }
    if evidence.provider not in ("cpu",) and evidence.tables:
        facts["predicted_memcpy"] = len(evidence.placement.copies)
    if evidence.observed is not None and (worked := [t for t in evidence.observed.trials if t.error is None]):
        facts["ran"] = "; ".join(dict.fromkeys(str(trial) for trial in worked))
    if evidence.observed is not None and evidence.observed.timings:
        facts["memcpy"] = len(evidence.observed.ran("MemcpyToHost", "MemcpyFromHost"))
        facts["run_microseconds"] = round(1000 * sum(timing.milliseconds for timing in evidence.observed.timings))
    return facts


def _notes(evidence: Evidence) -> list[str]:
    notes = []
    if not evidence.tables:
        notes.append(f"There is no kernel table for {evidence.provider}, so placement was not predicted.")
    elif (table := evidence.tables[0].runtime) != ort.__version__:
        notes.append(f"Placement is predicted for ONNX Runtime {table}; {ort.__version__} is installed here.")
    if evidence.provider == "tensorrt":
        notes.append("TensorRT takes what its own parser can; placement is predicted for what it leaves to CUDA.")
    return notes if evidence.observed is None else [*notes, *_run_notes(evidence.observed)]


def _run_notes(observed: Observed) -> Iterator[str]:
    """What was not measured, and why."""
    if observed.unfed:
        yield f"No inputs could be made up for this model, so it was loaded and not run: {observed.unfed}."
    if observed.failed and not observed.trials:
        tried = "; ".join(str(trial) for trial in observed.failed)
        yield f"The made-up inputs were refused, so nothing was measured ({tried}): {observed.failed[-1].error}"
    if observed.ended:
        yield f"{observed.ended[:1].upper()}{observed.ended[1:]}; what was not run behind it is not known."
