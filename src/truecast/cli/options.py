"""The options of the verbs, each declared once. Names are checked at once, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from truecast.errors import InputError

NEUTRAL: Mapping[str, float | int | None] = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": None}
"""What takes the likeliest token."""
DEFAULT_MAX_NEW_TOKENS = 256


def require_known(what: str, value: str, known: Iterable[str]) -> str:
    """Returns `value`; raises InputError with the nearest name when it is not one of `known`."""
    names = list(known)
    if value in names:
        return value
    near = get_close_matches(value, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names)}."
    raise InputError(f"There is no {what} {value!r}; {hint}")


def _target(value: str) -> str:
    from truecast.targets import find_target

    return find_target(value).name


def _precision(value: str | None) -> str | None:
    from truecast.inspection import PRECISIONS
    from truecast.weights.precision import INTEGERS

    return None if value is None else require_known("precision", value, (*PRECISIONS, "bf16", *INTEGERS))


def _exporter(value: str) -> str:
    return require_known("exporter", value, ("dynamo", "torchscript"))


def _optimization(value: str) -> str:
    return require_known("level of optimization", value, ("all", "extended", "basic", "none"))


def _clean_up(value: str) -> str:
    return require_known("clean-up", value, ("none", "onnxscript", "onnxslim", "onnxsim"))


def _task(value: str | None) -> str | None:
    from truecast.checkpoint.tasks import TASKS

    return None if value is None else require_known("task", value, TASKS)


def _dynamic(values: list[str] | None) -> list[str] | None:
    for value in values or ():
        place, sign, _ = value.partition("=")
        name, dot, axis = place.rpartition(".")
        if not sign or not dot or not name or not axis.isdigit():
            raise InputError(
                f"--dynamic {value} is no axis; write INPUT.AXIS=NAME, as x.1=length or x.1=length=1..512."
            )
    return values


def free_axes(values: list[str] | None) -> dict[str, dict[int, str]] | None:
    """The axes that `--dynamic` frees, by input and number; None when it is not given."""
    if not values:
        return None
    axes: dict[str, dict[int, str]] = {}
    for value in values:
        place, _, name = value.partition("=")
        source, _, axis = place.rpartition(".")
        axes.setdefault(source, {})[int(axis)] = name
    return axes


def _provider(value: str) -> str:
    from truecast.runtime.providers import find_provider

    return find_provider(value).name


def _any_provider(value: str) -> str:
    from truecast.runtime.providers import PROVIDERS

    return require_known("provider", value.lower(), PROVIDERS)


def _session(values: list[str] | None) -> list[str] | None:
    for value in values or ():
        if "=" not in value:
            raise InputError(f"--session {value} has no value; write KEY=VALUE, as session.x64quantprecision=1.")
    return values


def _activations(value: str) -> str:
    return require_known("kind of activations", value, ("int8", "float"))


def _method(value: str) -> str:
    from truecast.calibration.libraries import CALIBRATED
    from truecast.weights.quantizers import STREAMED

    return require_known("method", value, (*STREAMED, *CALIBRATED))


def _calibration_method(value: str) -> str:
    return require_known("calibration method", value, ("minmax", "entropy", "percentile"))


def _kv_cache(value: str) -> str:
    return require_known("kind of cache", value, ("float", "int8", "int4"))


def require_heeded(generates: bool, max_new_tokens: int, choices: Mapping[str, float | int | None]) -> None:
    """Raises InputError for an option of `run` that the artifact, or the likeliest token always, has no use for."""
    from truecast.runtime.sampling import Sampling

    Sampling(**choices)  # type: ignore[arg-type]  # says first what is outside its range
    changed = [name for name, value in choices.items() if value != NEUTRAL[name]]
    if not generates and (changed or max_new_tokens != DEFAULT_MAX_NEW_TOKENS):
        option = (changed or ["max_new_tokens"])[0].replace("_", "-")
        raise InputError(f"--{option} is for language models; this artifact generates nothing, leave it out.")
    if changed and not choices["temperature"]:
        raise InputError(
            f"--{changed[0].replace('_', '-')} chooses among tokens, but at --temperature 0 the likeliest is taken; "
            "give a --temperature above 0, or leave it out."
        )


SourcePath = Annotated[
    Path, typer.Argument(metavar="SOURCE", help="A Hugging Face folder with safetensors, or a GGUF file.")
]
NewFolder = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to publish; must not exist.")]
ArtifactFolder = Annotated[Path, typer.Argument(metavar="OUT", help="A folder that `truecast export` wrote.")]
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue.")]
Pair = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT", help="The second text of a pair: a reranker's passage, or where a question's answer is found."
    ),
]
CalibrationMethod = Annotated[
    str,
    typer.Option(callback=_calibration_method, help="How int8-static finds ranges: minmax, entropy or percentile."),
]
EveryCheck = Annotated[bool, typer.Option("--all", help="Print every check, not a summary by tier.")]
Adapter = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A LoRA adapter of peft's, added to the weights.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

Target = Annotated[str, typer.Option(callback=_target, help="The runtime's contract: onnxruntime, genai or portable.")]
Opset = Annotated[
    int | None,
    typer.Option(
        help="Version of the ONNX operators: 21 to 25 for the target portable, 17 to 25 for models without a cache.",
        show_default=False,
    ),
]
Exporter = Annotated[
    str,
    typer.Option(callback=_exporter, help="dynamo or torchscript, torch's two exporters; for models without a cache."),
]
Optimization = Annotated[
    str,
    typer.Option(
        callback=_optimization,
        help="What ONNX Runtime may do to a graph without a cache when it loads it: all, extended, basic or none.",
    ),
]
SaveOptimized = Annotated[
    bool,
    typer.Option("--save-optimized", help="Keep the graph as ONNX Runtime rewrote it, too; bound to this machine."),
]
CleanUp = Annotated[
    str,
    typer.Option(
        callback=_clean_up,
        help="The library that rewrites a graph without a cache once more: onnxscript, onnxslim, onnxsim, or none.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        callback=_task,
        help="What the model is for, as text-classification; without it, what the checkpoint's files name.",
        show_default=False,
    ),
]
Module = Annotated[
    str | None,
    typer.Option(
        metavar="PACKAGE.FILE:FUNCTION",
        help="A function that takes SOURCE and gives a torch.nn.Module, with example inputs where it takes no tokens.",
        show_default=False,
    ),
]
Dynamic = Annotated[
    list[str] | None,
    typer.Option(
        metavar="INPUT.AXIS=NAME",
        callback=_dynamic,
        help="A free axis of a module's input, as x.1=length or x.1=length=1..512; may be repeated.",
        show_default=False,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        callback=_precision,
        help="as-is, fp32, fp16, int8 or int4, for models without a cache bf16, int8-dynamic and int8-static, too; "
        "without it, what `inspect` recommends for the provider.",
        show_default=False,
    ),
]
Provider = Annotated[
    str,
    typer.Option(
        callback=_provider,
        help="Where it will run: cpu, cuda, tensorrt, directml, openvino, coreml or qnn, if installed.",
    ),
]
BlockSize = Annotated[int, typer.Option(help="Weights per scale of int8 and int4: 16, 32, 64, 128 or 256.")]
Activations = Annotated[
    str, typer.Option(callback=_activations, help="int8 or float, for the products of quantized weights.")
]
Method = Annotated[
    str,
    typer.Option(
        callback=_method, help="How the codes of int4 and int8 are made: rtn, k-quant, hqq, gptq, awq or auto-round."
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN=PRECISION",
        help="Gives matching weights as-is, fp32, int8 or int4 instead, as lm_head=int8; may be repeated, "
        "the last match counts.",
        show_default=False,
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Text for gptq, awq, auto-round and --kv-cache, and to measure prices on: paragraphs (.txt), or lines of "
        '{"text": …} (.jsonl).',
        show_default=False,
    ),
]
KvCache = Annotated[
    str, typer.Option(callback=_kv_cache, help="What keys and values are kept as: float, int8 or int4.")
]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Skip the proof; the certificate then says `unproven`.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the artifact at OUT.")]
LinkWeights = Annotated[
    bool, typer.Option("--link-weights", help="Refer to the checkpoint's own bytes where possible (fp32).")
]
NothingToTrust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Taken for the like of `export`; here no such code runs.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let code that comes with the checkpoint run.")
]
Against = Annotated[
    Path | None,
    typer.Option(
        metavar="SOURCE", help="The checkpoint to compare with, where it moved since the export.", show_default=False
    ),
]

MaxNewTokens = Annotated[int, typer.Option(help="Tokens to generate at most.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token; higher values vary more.")]
TopK = Annotated[int, typer.Option(help="Choose among this many likeliest tokens; 0 for all.")]
TopP = Annotated[float, typer.Option(help="Choose among the likeliest tokens that hold this much probability.")]
Seed = Annotated[int | None, typer.Option(help="Makes the choices repeatable.", show_default=False)]

PlanPath = Annotated[Path, typer.Argument(metavar="PLAN.toml", help="What to measure: model, rows, variants.")]
StudyFolder = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="The study's folder; one that was interrupted goes on.")
]
Jobs = Annotated[int, typer.Option(help="Variants exported at a time; they are measured one by one.")]
Again = Annotated[bool, typer.Option("--again", help="Measure what is measured already; exports are kept.")]
Cluster = Annotated[
    str | None,
    typer.Option("--on", metavar="CLUSTER", help="ray or ray://HOST:PORT, to run there.", show_default=False),
]

ModelPath = Annotated[
    Path, typer.Argument(metavar="MODEL.onnx|OUT", help="An ONNX file, a folder with one, or an artifact.")
]
AnyProvider = Annotated[
    str,
    typer.Option(
        "--provider",
        callback=_any_provider,
        help="Where it is meant to run: cpu, cuda, tensorrt, directml, openvino, coreml or qnn, installed or not.",
    ),
]
RunIt = Annotated[bool, typer.Option("--run", help="Load and run it too, on made-up inputs.")]
RunSeconds = Annotated[
    float,
    typer.Option("--seconds", min=1.0, help="What each run may take; a longer one is ended, what is known is kept."),
]
FixIt = Annotated[
    bool, typer.Option("--fix", help="Write a mended file beside it, where the results provably stay the same.")
]
SessionKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--session",
        metavar="KEY=VALUE",
        callback=_session,
        help="A session key that it is meant to run with; may be repeated.",
        show_default=False,
    ),
]
