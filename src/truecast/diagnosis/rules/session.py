"""TC7xx: settings without effect, providers that are absent, files bound to one machine, and what a run showed."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

import onnxruntime as ort

from truecast.diagnosis.evidence import Evidence, label
from truecast.diagnosis.kernels import session_keys
from truecast.diagnosis.model import Seen, seen
from truecast.diagnosis.rules.kernels import HALVES, falls_back
from truecast.diagnosis.rules.rule import ERROR, WARNING, Rule
from truecast.runtime.processors import default_threads
from truecast.runtime.providers import PROVIDERS

HOST_DOMAINS = ("com.microsoft.nchwc", "com.ms.internal.nhwc")
LARGEST_DIFFERENCE = 1e-2
"""Relative difference that the optimizer may make: int8 and 4-bit products round differently when fused."""
MEMCPY = ("MemcpyToHost", "MemcpyFromHost")
GENAI_NAMES = {"dml": "directml", "tensorrt": "tensorrt", "nvtensorrtrtx": "tensorrt"}


def provider_absent(evidence: Evidence) -> Seen | None:
    """A provider that is asked for and not in the installed ONNX Runtime, which falls back in silence."""
    names = [
        f"{name} (asked for in {origin})"
        for name, origin in evidence.settings.providers.items()
        if not _installed(name)
    ]
    if evidence.observed is not None and not evidence.observed.installed:
        return seen(
            [evidence.provider, *names], f"installed: {', '.join(ort.get_available_providers())}", severity=ERROR
        )
    return seen(names, f"installed: {', '.join(ort.get_available_providers())}")


def _installed(name: str) -> bool:
    provider = PROVIDERS.get(GENAI_NAMES.get(name, name))
    return provider is None or provider.execution_provider in ort.get_available_providers()


def misspelt_keys(evidence: Evidence) -> Seen | None:
    """Session keys that ONNX Runtime does not know, and accepts."""
    return seen(_unknown_keys(evidence))


def _unknown_keys(evidence: Evidence) -> Iterator[str]:
    for key in evidence.settings.entries:
        if key not in session_keys():
            near = get_close_matches(key, session_keys(), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield f"{key} in {evidence.settings.origins.get(key, 'the settings')}{hint}"


def too_many_threads(evidence: Evidence) -> Seen | None:
    """More threads than this process may use."""
    threads, allowed = evidence.settings.threads, default_threads()
    if threads is None or threads <= allowed:
        return None
    return Seen(("intra_op_num_threads",), 1, f"{threads} threads where {allowed} may run")


def bound_to_host(evidence: Evidence) -> Seen | None:
    """Operators that ONNX Runtime's optimizer made for one processor."""
    return seen(label(node) for node in evidence.nodes if node.domain in HOST_DOMAINS)


def passes_through(evidence: Evidence) -> Seen | None:
    """An input that is an output under the same name, or one value returned twice."""
    outputs = evidence.graph.outputs
    twice = {value.name for index, value in enumerate(outputs) if value in outputs[:index]}
    return seen(
        [*(f"{v.name} (an input)" for v in outputs if v.is_graph_input()), *(f"{name} (twice)" for name in twice)]
    )


def refused(evidence: Evidence) -> Seen | None:
    """What ONNX Runtime says when it does not load the model."""
    refusal = None if evidence.observed is None else evidence.observed.refusal
    return None if refusal is None else Seen((), 1, refusal)


def provider_idle(evidence: Evidence) -> Seen | None:
    """The session has the provider and gave it no node."""
    observed, wanted = evidence.observed, PROVIDERS[evidence.provider].execution_provider
    if observed is None or not observed.assigned or observed.assigned.get(wanted):
        return None
    lacking = falls_back(evidence)
    detail = f"{sum(observed.assigned.values())} nodes elsewhere"
    return Seen(tuple(observed.assigned), 1, detail, fix=None if lacking is None else lacking.fix)


def copies_ran(evidence: Evidence) -> Seen | None:
    """Memcpy nodes that really ran."""
    ran = [] if evidence.observed is None else evidence.observed.ran(*MEMCPY)
    return (
        seen((timing.name for timing in ran), milliseconds=sum(t.milliseconds for t in ran)) if len(ran) > 8 else None
    )


def not_finite(evidence: Evidence) -> Seen | None:
    """NaN or infinity in the outputs of an ordinary run."""
    trials = () if evidence.observed is None else evidence.observed.trials
    names = dict.fromkeys(name for trial in trials if not trial.padded for name in trial.not_finite)
    half = any(dtype in HALVES for dtype in evidence.types.values())
    return seen(names, fix=KEEP_WIDE if half else None)


KEEP_WIDE = "Find the first layer that overflows; keep it in float32."


def optimizer_differs(evidence: Evidence) -> Seen | None:
    """Outputs that change when ONNX Runtime's optimizer is switched off."""
    difference = None if evidence.observed is None else evidence.observed.difference
    if difference is None or difference <= LARGEST_DIFFERENCE:
        return None
    return Seen((), 1, f"largest relative difference {difference:.2g}")


def did_not_end(evidence: Evidence) -> Seen | None:
    """A run that took more than its time, or that took its process with it."""
    observed = evidence.observed
    if observed is None or observed.ended is None:
        return None
    return Seen(
        (),
        1,
        observed.ended,
        severity=ERROR if observed.crashed else None,
        fix=OWN_PROCESS if observed.crashed else None,
    )


OWN_PROCESS = "Report it to ONNX Runtime with this file; open such files in a process of their own."


RULES = (
    Rule(
        "TC701",
        WARNING,
        "A provider that this ONNX Runtime does not have",
        "A session falls back to the processor with a warning at most.",
        "Install the provider's wheel in place of this one, and open sessions with enable_fallback=0.",
        provider_absent,
    ),
    Rule(
        "TC702",
        WARNING,
        "A session key that ONNX Runtime does not know",
        "It is accepted and has no effect.",
        "Correct the key, and read back what it changes.",
        misspelt_keys,
    ),
    Rule(
        "TC703",
        WARNING,
        "More threads than processors",
        "Threads spin against each other: half the speed on a shared machine.",
        "Leave the number out, or set what the process may use.",
        too_many_threads,
    ),
    Rule(
        "TC704",
        WARNING,
        "A file that was optimized for one machine",
        "It holds operators of one processor's layout: slower elsewhere, or refused.",
        "Ship the graph as it was before offline optimization.",
        bound_to_host,
    ),
    Rule(
        "TC705",
        WARNING,
        "An output that is an input, or is returned twice",
        "Runtimes hand out one buffer under both names, or another tensor.",
        "Put an Identity before the output.",
        passes_through,
    ),
    Rule(
        "TC706",
        ERROR,
        "ONNX Runtime does not load the model",
        "Nothing runs.",
        "Mend what the reason names; where the file has other errors, they say more.",
        refused,
    ),
    Rule(
        "TC707",
        ERROR,
        "The provider got no node",
        "All of the model runs on the processor.",
        "Open the session with log_severity_level=0, which says for each node why the provider does not take it.",
        provider_idle,
    ),
    Rule(
        "TC708",
        WARNING,
        "Memcpy nodes ran",
        "Each waits for the device.",
        "Give the operators at both ends kernels on one side; without --run, diagnose names those without kernels.",
        copies_ran,
    ),
    Rule(
        "TC709",
        ERROR,
        "Outputs are not finite",
        "NaN or infinity for ordinary inputs.",
        "Find the first operator that gives them: a division by zero, the logarithm or root of a negative number, or a "
        "mask of minus infinity.",
        not_finite,
    ),
    Rule(
        "TC710",
        WARNING,
        "The runtime's optimizer changes the results",
        "The model as written and as run differ by more than rounding.",
        "Switch off the optimizer that differs (optimization.disable_specified_optimizers), and report it.",
        optimizer_differs,
    ),
    Rule(
        "TC711",
        WARNING,
        "A run was ended",
        "A server that waits for it hangs, or goes down with it.",
        "Look for a Loop without an end or a size that is much too large; give slow models more time with --seconds.",
        did_not_end,
    ),
)
