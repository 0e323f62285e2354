"""The options of the verbs, each declared once. Names are checked at once, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from truecast.errors import InputError
from truecast.request.options import require_value

NEUTRAL: Mapping[str, float | int | None] = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": None}
"""What takes the likeliest token."""
DEFAULT_MAX_NEW_TOKENS = 256


def _any_provider(value: str) -> str:
    return require_value("provider", value.lower())


def _session(values: list[str] | None) -> list[str] | None:
    for value in values or ():
        if "=" not in value:
            raise InputError(f"--session {value} has no value; write KEY=VALUE, as session.x64quantprecision=1.")
    return values


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
EveryCheck = Annotated[bool, typer.Option("--all", help="Print every check, not a summary by tier.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

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
