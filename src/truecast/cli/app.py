"""The verbs. Each asks `truecast.api` for a result and hands it to `show`; imports wait until a verb runs."""

from __future__ import annotations

from typing import Annotated

import typer

from truecast import __version__
from truecast.cli import options as given
from truecast.cli.requested import with_options
from truecast.cli.verbs import Verb
from truecast.request import Request

app = typer.Typer(
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"truecast {__version__}")
        raise typer.Exit


@app.callback()
def truecast(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Casts Hugging Face checkpoints to ONNX and proves that the result is still the same model."""


@app.command(cls=Verb)
def inspect(source: given.SourcePath, as_json: given.AsJson = False) -> int:
    """Says what a checkpoint is.

    How it is stored, what it can become, and what that will cost. Reads headers only.
    """
    from truecast import api
    from truecast.cli import show

    return show.inspected(api.inspect(source), as_json)


@app.command(cls=Verb)
@with_options
def export(source: given.SourcePath, out: given.NewFolder, request: Request, as_json: given.AsJson = False) -> int:
    """Casts a checkpoint and proves the result.

    The folder OUT appears when the proof has passed; otherwise the result is kept as OUT.rejected.
    """
    from truecast import api
    from truecast.cli import choice, show
    from truecast.cli.meter import Meter
    from truecast.cli.progress import stages

    chosen = choice.choose(source if request.module is None else None, request.precision, request.provider)
    with Meter() as meter, stages(f"Casting {source} to {chosen}") as progress:
        artifact = api.export(source, out, request, precision=chosen.precision, progress=progress)
    return show.exported(artifact, chosen, meter, as_json)


@app.command(cls=Verb)
def verify(
    out: given.ArtifactFolder,
    against: given.Against = None,
    every_check: given.EveryCheck = False,
    trust_remote_code: given.TrustRemoteCode = False,
    as_json: given.AsJson = False,
) -> int:
    """Proves an artifact again.

    Compares with the checkpoint that it was made from; changes nothing on disk.
    """
    from truecast import api
    from truecast.cli import show
    from truecast.cli.meter import Meter
    from truecast.cli.progress import stages

    with Meter() as meter, stages(f"Proving {out}") as progress:
        certificate = api.open(out).verify(against, progress, trust_remote_code=trust_remote_code)
    return show.verified(out, certificate, meter, as_json, every_check)


@app.command(cls=Verb)
def diagnose(
    model: given.ModelPath,
    provider: given.AnyProvider = "cpu",
    run: given.RunIt = False,
    seconds: given.RunSeconds = 60.0,
    fix: given.FixIt = False,
    session: given.SessionKeys = None,
    trust_remote_code: given.NothingToTrust = False,
    as_json: given.AsJson = False,
) -> int:
    """Finds what goes wrong in silence with an ONNX file, whoever made it.

    Needs neither its provider nor its weights; the exit status is 1 when there is an error among the findings.
    """
    from truecast import api
    from truecast.cli import show
    from truecast.cli.progress import stages

    keys = dict(entry.split("=", 1) for entry in session or ())
    with stages(f"Looking at {model}") as progress:
        diagnosis = api.diagnose(model, provider, run, keys, seconds, progress)
    return show.diagnosed(diagnosis, api.repair(model, seconds) if fix else None, as_json)


@app.command(cls=Verb)
def study(
    plan: given.PlanPath,
    out: given.StudyFolder,
    jobs: given.Jobs = 1,
    on: given.Cluster = None,
    again: given.Again = False,
    trust_remote_code: given.TrustRemoteCode = False,
    as_json: given.AsJson = False,
) -> int:
    """Measures variants of a model side by side.

    Exports, proves, diagnoses and times each in processes of its own; ends with a verdict.
    """
    from truecast import api
    from truecast.cli import show
    from truecast.cli.variants import board

    with board(f"Studying {plan}") as watch:
        report = api.study(
            plan, out, jobs=jobs, cluster=on, watch=watch, again=again, trust_remote_code=trust_remote_code
        )
    return show.studied(report, out, as_json)


@app.command(cls=Verb)
def run(
    out: given.ArtifactFolder,
    prompt: given.Prompt,
    max_new_tokens: given.MaxNewTokens = given.DEFAULT_MAX_NEW_TOKENS,
    temperature: given.Temperature = 0.0,
    top_k: given.TopK = 0,
    top_p: given.TopP = 1.0,
    seed: given.Seed = None,
    pair: given.Pair = None,
    trust_remote_code: given.NothingToTrust = False,
    as_json: given.AsJson = False,
) -> int:
    """Continues a text, or says what an encoder makes of it.

    Prints what the artifact in OUT makes of PROMPT, as it comes.
    """
    from truecast import api
    from truecast.cli import show

    artifact = api.open(out)
    choices = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    given.require_heeded(artifact.manifest.graph.cache is not None, max_new_tokens, choices)
    if artifact.manifest.graph.cache is None:
        return show.answered(artifact.answer(prompt, pair), as_json)
    if pair is not None:
        from truecast.errors import InputError

        raise InputError(f"{out} is a language model, which takes one text; leave --pair out.")
    generation = artifact.generate(
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        on_text=None if as_json else show.piece,
    )
    return show.generated(generation, as_json)
