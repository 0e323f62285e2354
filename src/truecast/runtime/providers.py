"""Opens ONNX Runtime sessions that are what was asked for.

ONNX Runtime accepts misspelt session keys, falls back to the processor when a provider is absent, and sizes its thread
pool by the host. Here a name that is not known is an error, and what was set is read back from the session.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from truecast.errors import InputError, TruecastError
from truecast.runtime.processors import default_threads

NOTHING: Mapping[str, str] = MappingProxyType({})
ERROR_SEVERITY = 3
"""ONNX Runtime's log level for errors; warnings of the graph optimizer are of no use to a user."""

EXACT_KEY = "mlas.qnbit.force_fp32"
PAIRED_KEY = "session.qdq_matmulnbits_accuracy_level"
"""Level of the products that ONNX Runtime makes of DequantizeLinear and MatMul; 0 takes float activations."""
PRECISE_KEY = "session.x64quantprecision"
"""Makes int8 weights of products uint8 ones when a graph is loaded, with which no x86 processor saturates."""
WITHOUT_KEY = "optimization.disable_specified_optimizers"
PRECISE_ENTRIES: Mapping[str, str] = MappingProxyType({PRECISE_KEY: "1", WITHOUT_KEY: "ConstantSharing"})
"""The key, and what goes with it: weights whose zero points are one and the same tensor do not load (1.31)."""
EXACT_ENTRIES: Mapping[str, str] = MappingProxyType({EXACT_KEY: "1", PAIRED_KEY: "0"})
ASSIGNMENT_KEY = "session.record_ep_graph_assignment_info"
FOLDER_KEY = "session.model_external_initializers_file_folder_path"
"""Where a graph given as bytes finds its data file."""
KNOWN_KEYS = frozenset(
    {
        EXACT_KEY,
        PAIRED_KEY,
        ASSIGNMENT_KEY,
        "mlas.use_lut_gemm",
        "optimization.constant_folding_max_output_size_in_bytes",
        WITHOUT_KEY,
        "session.collect_node_memory_stats_to_file",
        "session.disable_cpu_ep_fallback",
        "session.disable_prepacking",
        "session.dynamic_block_base",
        "session.force_spinning_stop",
        "session.intra_op.allow_spinning",
        "session.intra_op.spin_duration_us",
        "session.intra_op_thread_affinities",
        "session.prepack.enable_parallel",
        "session.set_denormal_as_zero",
        "session.strict_shape_type_inference",
        "session.use_device_allocator_for_initializers",
        PRECISE_KEY,
    }
)
"""Session keys that ONNX Runtime 1.31 knows, of those that make sense here (a test looks each up in its library)."""


LEVELS: Mapping[str, ort.GraphOptimizationLevel] = MappingProxyType(
    {
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }
)
"""What ONNX Runtime may do to a graph when it loads it."""
LOAD_ERRORS = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NoSuchFile,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)
"""What ONNX Runtime raises for a graph that it refuses (its exceptions share no base of their own)."""


@dataclass(frozen=True)
class Provider:
    """One execution provider: the user's name, ONNX Runtime's name, and the wheel that brings it."""

    name: str
    execution_provider: str
    wheel: str


PROVIDERS: Mapping[str, Provider] = MappingProxyType(
    {
        name: Provider(name, f"{full}ExecutionProvider", wheel)
        for name, full, wheel in (
            ("cpu", "CPU", "onnxruntime"),
            ("cuda", "CUDA", "onnxruntime-gpu"),
            ("tensorrt", "Tensorrt", "onnxruntime-gpu"),
            ("directml", "Dml", "onnxruntime-directml"),
            ("openvino", "OpenVINO", "onnxruntime-openvino"),
            ("coreml", "CoreML", "onnxruntime for macOS"),
            ("qnn", "QNN", "onnxruntime-qnn"),
        )
    }
)


def find_provider(name: str) -> Provider:
    """The provider of that name, installed here; raises InputError when it is unknown or its wheel is missing."""
    provider = PROVIDERS.get(name.lower())
    if provider is None:
        near = get_close_matches(name.lower(), PROVIDERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(PROVIDERS)}."
        raise InputError(f"There is no provider {name!r}; {hint}")
    if provider.execution_provider not in ort.get_available_providers():
        raise InputError(
            f"Provider {provider.name!r} is not in this ONNX Runtime, which has {', '.join(installed_providers())}; "
            f"install the wheel {provider.wheel} in its place."
        )
    return provider


def require_kernels(folder: Path, names: Sequence[str], provider: str) -> None:
    """Raises InputError when a graph runs on the providers `names` only (none named: on any), not on that one."""
    if not names or provider.lower() in names:
        return
    here = [name for name in installed_providers() if name in names]
    way = f"open it on {here[0]}" if here else f"open it where the wheel {PROVIDERS[names[0]].wheel} is installed"
    raise InputError(
        f"{folder} has kernels on {' and '.join(names)} only, not on {provider}; {way}, or export it again with "
        "--precision fp32 or fp16."
    )


def installed_providers() -> list[str]:
    """Names of the providers that the installed ONNX Runtime has."""
    present = ort.get_available_providers()
    return [name for name, provider in PROVIDERS.items() if provider.execution_provider in present]


def open_session(
    model: Path,
    provider: str = "cpu",
    threads: int | None = None,
    *,
    exact: bool = False,
    entries: Mapping[str, str] = NOTHING,
    level: str = "all",
    arena: bool = False,
    profile: Path | None = None,
    optimized_model: Path | None = None,
) -> ort.InferenceSession:
    """A session of `model` on `provider`, with `threads` threads (default: the processors this process may use).

    `exact` switches the int8 activations of 4-bit products off, and those of products made of DequantizeLinear.
    `entries` are further session keys, of which `exact` overrides its own. `level` is one of LEVELS; `none` runs the
    graph as written. `arena` keeps memory for later calls, which graphs without a cache gain from. `profile` is the
    prefix of a profile file; `optimized_model` is where the graph is saved as ONNX Runtime rewrote it. Raises
    InputError for a name that is not known, a missing file, or a graph that ONNX Runtime refuses; TruecastError when
    the session is not what was asked for.
    """
    chosen = find_provider(provider)
    if not model.is_file():
        raise InputError(f"{model} is missing; export the model again, or check the path.")
    options = session_options(threads, exact=exact, entries=entries)
    options.graph_optimization_level = LEVELS[level]
    options.enable_cpu_mem_arena = options.enable_mem_pattern = arena
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if optimized_model is not None:
        options.optimized_model_filepath = str(optimized_model)
    if chosen.name != "cpu":
        options.add_session_config_entry(ASSIGNMENT_KEY, "1")
    session = _load(model, options, chosen)
    _read_back(session, options, chosen)
    return session


def session_options(
    threads: int | None = None, *, exact: bool = False, entries: Mapping[str, str] = NOTHING
) -> ort.SessionOptions:
    """Options with checked keys, an explicit number of threads, and no memory kept for later.

    The arena never gives back what a long prompt took, and memory patterns are kept for every length of the mask that
    was ever seen. Without both the 0.5 B shape holds 593 MB instead of 665 behind a prompt of 1500 tokens, at a speed
    that does not differ measurably.
    """
    options = ort.SessionOptions()
    options.log_severity_level = ERROR_SEVERITY
    options.intra_op_num_threads = _checked_threads(threads)
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    for key, value in {**entries, **(EXACT_ENTRIES if exact else {})}.items():
        if key not in KNOWN_KEYS:
            near = get_close_matches(key, KNOWN_KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see truecast.runtime.providers.KNOWN_KEYS."
            raise InputError(f"{key!r} is no session key that truecast knows, and ONNX Runtime would ignore it; {hint}")
        options.add_session_config_entry(key, value)
    return options


def assigned_nodes(session: ort.InferenceSession) -> Counter[str]:
    """Number of nodes per execution provider; the session must have been opened with ASSIGNMENT_KEY set to "1"."""
    counts: Counter[str] = Counter()
    for subgraph in session.get_provider_graph_assignment_info():
        counts[subgraph.ep_name] += len(subgraph.get_nodes())
    return counts


def _checked_threads(threads: int | None) -> int:
    if threads is not None and threads < 1:
        raise InputError(f"The number of threads is {threads}; give 1 or more, or none for the default.")
    return threads or default_threads()


def _load(model: Path, options: ort.SessionOptions, provider: Provider) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(model), options, providers=[provider.execution_provider], enable_fallback=0)
    except LOAD_ERRORS as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"ONNX Runtime cannot load {model} on {provider.name}: {reason}; export it again.") from error


def _read_back(session: ort.InferenceSession, options: ort.SessionOptions, provider: Provider) -> None:
    wanted, got = provider.execution_provider, session.get_providers()[0]
    if got != wanted:
        raise TruecastError(f"ONNX Runtime runs the model on {got} although {wanted} was asked for.")
    threads, asked = session.get_session_options().intra_op_num_threads, options.intra_op_num_threads
    if threads != asked:
        raise TruecastError(f"ONNX Runtime took {threads} threads although {asked} were asked for.")
    if provider.name != "cpu" and not assigned_nodes(session)[wanted]:
        raise TruecastError(f"ONNX Runtime gave {wanted} no node of the graph; all of it would run on the processor.")
