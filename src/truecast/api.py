"""The public API: `export`, `open`, `inspect`, and the artifact they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truecast.artifact import Certificate, Manifest, read_manifest
from truecast.checkpoint.tasks import GENERATION
from truecast.errors import InputError

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


def export(
    source: Any,
    out: Path | str,
    *,
    task: str | None = None,
    module: str | None = None,
    example_inputs: Any = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    target: str = "onnxruntime",
    precision: str | None = None,
    provider: str = "cpu",
    block_size: int = 32,
    activations: str = "int8",
    exporter: str = "dynamo",
    optimization: str = "all",
    save_optimized: bool = False,
    clean_up: str = "none",
    opset: int | None = None,
    method: str = "rtn",
    keep: Sequence[str] = (),
    calibration: Path | str | None = None,
    calibration_method: str = "minmax",
    kv_cache: str = "float",
    link_weights: bool = False,
    verify: bool = True,
    force: bool = False,
    trust_remote_code: bool = False,
    adapter: Path | str | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Casts a checkpoint or a module into the folder `out` and proves it.

    Args:
        source: the path of a Hugging Face folder with safetensors or of a GGUF file, or a `torch.nn.Module`.
        out: the folder to publish; it must not exist unless `force`.
        task: what the model is for, in the Hub's words (`text-generation`, `feature-extraction`, …); None takes the one
            that the checkpoint's files name.
        module: "package.file:function" of a function that takes `source` and gives a module, or (module, example
            inputs), or (module, example inputs, dynamic).
        example_inputs: a tensor, a sequence in forward()'s order, or a mapping by name; for a module.
        dynamic: free axes of a module, as {"x": {0: "batch_size", 1: "length=1..512"}}; None frees the first axis.
        target: `onnxruntime`, `genai` or `portable`.
        precision: `as-is`, `fp32`, `fp16`, `int8` or `int4`, for modules without a cache `bf16`, `int8-dynamic` and
            `int8-static`, too; None takes what `inspect` recommends for the provider.
        provider: where it will run.
        block_size: weights per scale of int8 and int4.
        activations: `int8` or `float`, for the products of quantized weights.
        exporter: `dynamo` or `torchscript`, for modules without a cache.
        optimization: what ONNX Runtime may do to the graph of such a module: `all`, `extended`, `basic` or `none`.
        save_optimized: whether to keep the graph as ONNX Runtime rewrote it, too; it is bound to this machine.
        clean_up: the library that rewrites such a graph once it is written: `onnxscript`, `onnxslim`, `onnxsim`, or
            `none` for truecast's own clean-up alone.
        opset: version of the ONNX operators, where the target leaves a choice (`portable`: 21 to 25).
        method: `rtn`, `k-quant`, `hqq`, `gptq`, `awq` or `auto-round`, which makes the codes of int8 and int4.
        keep: rules PATTERN=PRECISION for weights that get another precision, as "lm_head=int8"; the last match counts.
        calibration: text in paragraphs (.txt) or lines of {"text": …} (.jsonl) for the last three, and to measure on.
            Of a module, arrays by the names of its inputs (.npz), too: what `int8-static` finds its ranges in.
        calibration_method: `minmax`, `entropy` or `percentile`: how it does.
        kv_cache: `float`, `int8` or `int4`: what keys and values are kept as; scales are the checkpoint's own where it
            has any, else calibrated on `calibration`, or on a text of truecast's.
        link_weights: refer to the checkpoint's own bytes where the graph can use them as they are (fp32).
        verify: whether to prove the result; without, the certificate says `unproven`.
        force: whether an artifact at `out` may be replaced.
        trust_remote_code: whether code that comes with the checkpoint may run.
        adapter: a folder of peft's with a LoRA adapter, which is added to the weights.
        progress: called with stage, done and total.

    Raises:
        InputError: the input cannot be used; nothing was written.
        ProofError: the result is not the same model; it is kept as OUT.rejected.
    """
    from truecast import exporting

    place = source if isinstance(source, Path | str) else None
    without_cache = place is None or module is not None or _task(place, task) != GENERATION
    request = exporting.Request(
        target=target,
        precision=precision or _recommended(None if module is not None else place, provider),
        provider=provider,
        block_size=block_size,
        activations=activations,
        kv_cache=kv_cache,
        link_weights=link_weights,
        trust_remote_code=trust_remote_code,
        opset=opset,
        method=method,
        keep=tuple(keep),
        calibration=None if calibration is None else Path(calibration),
        calibration_method=calibration_method,
        exporter=exporter,
        optimization=optimization,
        save_optimized=save_optimized,
        clean_up=clean_up,
        adapter=None if adapter is None else Path(adapter),
    )
    if not without_cache:
        assert place is not None
        if dynamic is not None or example_inputs is not None:
            word = "--dynamic" if dynamic is not None else "example_inputs"
            raise InputError(f"{word} is for models without a cache; a decoder's axes are its own, leave it out.")
        folder = exporting.export(place, out, request, verify=verify, force=force, progress=progress)
        return Artifact(folder, provider)
    from truecast.exporting_modules import ModuleSource, export_module

    named = ModuleSource(
        None if place is None else Path(place),
        None if place is not None else source,
        task,
        module,
        example_inputs,
        dynamic,
        trust_remote_code,
        request.adapter,
    )
    return Artifact(export_module(named, out, request, verify=verify, force=force, progress=progress), provider)


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
