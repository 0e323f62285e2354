"""The public API: `export`, `open`, `inspect`, and the artifact they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truecast.artifact import Certificate, Manifest, read_manifest
from truecast.checkpoint.tasks import GENERATION
from truecast.errors import InputError
from truecast.request import RECOMMENDED, Request
from truecast.request.signature import takes_options

if TYPE_CHECKING:
    import onnxruntime as ort

    from truecast.diagnosis import Diagnosis, Repair
    from truecast.exporting import Progress
    from truecast.inspection import Inspection
    from truecast.runtime.answers import Answer
    from truecast.runtime.encoder import Encoder
    from truecast.runtime.model import Generation, TextModel
    from truecast.study import Report
    from truecast.study.local import Watch


class Artifact:
    """A published folder.

    `folder` is where it is, `manifest` what it says. The model is loaded when it is first used, and kept.
    """

    def __init__(self, folder: Path | str, provider: str = "cpu", threads: int | None = None) -> None:
        self.folder, self.provider, self.threads = Path(folder), provider, threads
        self.manifest: Manifest = read_manifest(self.folder)
        self._model: TextModel | None = None
        self._encoder: Encoder | None = None

    @property
    def model(self) -> TextModel:
        """The opened model and its tokenizer."""
        if self._model is None:
            from truecast.runtime.model import TextModel

            self._model = TextModel.open(self.folder, self.provider, self.threads)
        return self._model

    def session(self) -> ort.InferenceSession:
        """A new ONNX Runtime session of the graph, on the artifact's provider."""
        from truecast.runtime.providers import open_session, require_kernels

        graph = self.manifest.graph
        require_kernels(self.folder, graph.providers, self.provider)
        return open_session(
            self.folder / graph.file,
            self.provider,
            self.threads,
            entries=graph.session_entries,
            level=graph.optimization,
            arena=graph.cache is None,
        )

    def generate(self, prompt: str, **options: Any) -> Generation:
        """Continues `prompt`; options as in `TextModel.generate` (max_new_tokens, temperature, top_k, top_p, seed)."""
        return self.model.generate(prompt, **options)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs of the graph by name, for arrays of its inputs by name; for modules without a cache.

        Raises InputError for an input that is missing, that the graph does not have, or whose shape it does not take.
        """
        if self._encoder is None:
            from truecast.runtime.encoder import Encoder

            self._encoder = Encoder.open(self.folder, self.provider, self.threads)
        return self._encoder.run(feeds)

    def answer(self, text: str, pair: str | None = None) -> Answer:
        """What an encoder makes of a text, or of a pair, in the words of its task; InputError where it takes none."""
        from truecast.runtime.answers import answer

        return answer(self.folder, text, pair, self.provider, self.threads)

    def verify(
        self,
        against: Any = None,
        progress: Progress | None = None,
        example_inputs: Any = None,
        trust_remote_code: bool = False,
    ) -> Certificate:
        """Proves the artifact again, against its source or `against`; changes nothing on disk.

        `against` is a checkpoint's path, or the module with its `example_inputs` where only memory held it.
        `trust_remote_code` lets code that comes with the checkpoint run, for an artifact that was exported so.
        """
        from truecast.proof import verify

        if against is None or isinstance(against, Path | str):
            place, module = None if against is None else Path(against), None
        else:
            place, module = None, against
        return verify(
            self.folder,
            place,
            progress,
            trust_remote_code=trust_remote_code,
            module=module,
            example_inputs=example_inputs,
        )

    def __repr__(self) -> str:
        manifest = self.manifest
        return f"<Artifact {self.folder}: {manifest.precision} for {manifest.target}, {manifest.certificate.status}>"


@takes_options
def export(
    source: Any,
    out: Path | str,
    request: Request | None = None,
    *,
    example_inputs: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> Artifact:
    """Casts a checkpoint or a module into the folder `out` and proves it.

    Args:
        source: the path of a Hugging Face folder with safetensors or of a GGUF file, or a `torch.nn.Module`.
        out: the folder to publish; it must not exist unless `force`.
        request: what is asked for; or its fields one by one, as keyword arguments, which count before it.
        example_inputs: a tensor, a sequence in forward()'s order, or a mapping by name; for a module.
        progress: called with stage, done and total.
        options: fields of `Request`; its text says what each may be. `dynamic` is {"x": {0: "batch_size", 1:
            "length=1..512"}}, and without it the first axis is free.

    Raises:
        InputError: the input cannot be used; nothing was written.
        ProofError: the result is not the same model; it is kept as OUT.rejected.
    """
    from truecast import exporting

    request = replace(request or Request(), **options)
    place = source if isinstance(source, Path | str) else None
    without_cache = place is None or request.module is not None or _task(place, request.task) != GENERATION
    if request.precision == RECOMMENDED:
        named = place if request.module is None else None
        request = replace(request, precision=_recommended(named, request.provider))
    if not without_cache:
        assert place is not None
        if example_inputs is not None:
            raise InputError(
                "example_inputs is for models without a cache; a decoder's inputs are its own, leave it out."
            )
        return Artifact(exporting.export(place, out, request, progress), request.provider)
    from truecast.exporting_modules import ModuleSource, export_module

    named_module = ModuleSource(
        None if place is None else Path(place),
        None if place is not None else source,
        request.task,
        request.module,
        example_inputs,
        request.dynamic,
        request.trust_remote_code,
        request.adapter,
    )
    return Artifact(export_module(named_module, out, request, progress), request.provider)


def _task(source: Path | str, task: str | None) -> str:
    from truecast.checkpoint import open_checkpoint
    from truecast.checkpoint.tasks import chosen_task

    return chosen_task(open_checkpoint(source), task)


def _recommended(source: Path | str | None, provider: str) -> str:
    """What inspection recommends; float32 for a module that it cannot look into."""
    from truecast.checkpoint import open_checkpoint
    from truecast.inspection import recommended_precision

    return "fp32" if source is None else recommended_precision(open_checkpoint(source), provider)


def open(folder: Path | str, provider: str = "cpu", threads: int | None = None) -> Artifact:
    """The artifact in `folder`; raises InputError when there is none."""
    return Artifact(folder, provider, threads)


def inspect(source: Path | str) -> Inspection:
    """What a checkpoint is, how it is stored, what it can become and what that will cost; loads nothing."""
    from truecast.inspection import inspect as look

    return look(Path(source))


def diagnose(
    path: Path | str,
    provider: str = "cpu",
    run: bool = False,
    session: Mapping[str, str] | None = None,
    seconds: float | None = 60.0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Diagnosis:
    """What goes wrong in silence with an ONNX file, whoever made it, on a provider.

    Args:
        path: an ONNX file, a folder with one, or an artifact.
        provider: where it is meant to run; it need not be installed unless `run`.
        run: whether to load and run it too, on made-up inputs.
        session: session keys that it is meant to run with.
        seconds: what each run may take in a process of its own; None runs it in this one, without a limit.
        progress: told each step of a run as it begins.

    Raises:
        InputError: the file is missing, is no ONNX model, or the provider has no such name.
    """
    from truecast.diagnosis import diagnose as look

    return look(path, provider, run, session or {}, seconds, progress)


def repair(path: Path | str, seconds: float | None = 60.0) -> Repair:
    """Mends what `diagnose` calls fixable, in a new file beside the model, and checks that its results are the same.

    `seconds` is what each run of the check may take; None checks in this process, without a limit.
    """
    from truecast.diagnosis import repair as mend

    return mend(path, seconds)


def study(
    plan: Path | str,
    out: Path | str,
    jobs: int = 1,
    cluster: str | None = None,
    watch: Watch | None = None,
    again: bool = False,
    trust_remote_code: bool = False,
) -> Report:
    """Measures the variants of a plan side by side, and writes report.json, report.md and report.html.

    Args:
        plan: a TOML file.
        out: the study's folder; what is done in it already is kept.
        jobs: variants exported at a time; they are measured one by one.
        cluster: `ray` or `ray://HOST:PORT`, to run there.
        watch: called with a variant's name, what happens to it, and its row once there is one.
        again: whether to measure what is measured already; exports are kept.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        InputError: the plan, its rows or its model cannot be used, or `out` is something else.
    """
    from truecast.study import read_plan, run_study

    wanted = read_plan(Path(plan))
    trusted = wanted.model.model_copy(update={"trust_remote_code": wanted.model.trust_remote_code or trust_remote_code})
    return run_study(wanted.model_copy(update={"model": trusted}), out, jobs, cluster, watch, again)
