"""The public API: `export`, `open`, `inspect`, and the artifact they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truecast.artifact import Certificate, Manifest, read_manifest

if TYPE_CHECKING:
    import onnxruntime as ort

    from truecast.diagnosis import Diagnosis, Repair
    from truecast.exporting import Progress
    from truecast.inspection import Inspection
    from truecast.runtime.model import Generation, TextModel


class Artifact:
    """A published folder.

    `folder` is where it is, `manifest` what it says. The model is loaded when it is first used, and kept.
    """

    def __init__(self, folder: Path | str, provider: str = "cpu", threads: int | None = None) -> None:
        self.folder, self.provider, self.threads = Path(folder), provider, threads
        self.manifest: Manifest = read_manifest(self.folder)
        self._model: TextModel | None = None

    @property
    def model(self) -> TextModel:
        """The opened model and its tokenizer."""
        if self._model is None:
            from truecast.runtime.model import TextModel

            self._model = TextModel.open(self.folder, self.provider, self.threads)
        return self._model

    def session(self) -> ort.InferenceSession:
        """A new ONNX Runtime session of the graph, on the artifact's provider."""
        from truecast.runtime.providers import open_session

        graph = self.manifest.graph
        return open_session(self.folder / graph.file, self.provider, self.threads, entries=graph.session_entries)

    def generate(self, prompt: str, **options: Any) -> Generation:
        """Continues `prompt`; options as in `TextModel.generate` (max_new_tokens, temperature, top_k, top_p, seed)."""
        return self.model.generate(prompt, **options)

    def verify(self, against: Path | str | None = None, progress: Progress | None = None) -> Certificate:
        """Proves the artifact again, against its source or the checkpoint at `against`; changes nothing on disk."""
        from truecast.proof import verify

        return verify(self.folder, None if against is None else Path(against), progress=progress)

    def __repr__(self) -> str:
        manifest = self.manifest
        return f"<Artifact {self.folder}: {manifest.precision} for {manifest.target}, {manifest.certificate.status}>"


def export(
    source: Path | str,
    out: Path | str,
    *,
    target: str = "onnxruntime",
    precision: str | None = None,
    provider: str = "cpu",
    block_size: int = 32,
    activations: str = "int8",
    opset: int | None = None,
    method: str = "rtn",
    keep: Sequence[str] = (),
    calibration: Path | str | None = None,
    kv_cache: str = "float",
    link_weights: bool = False,
    verify: bool = True,
    force: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Casts the checkpoint at `source` into the folder `out` and proves it.

    Args:
        source: a Hugging Face folder with safetensors, or a GGUF file.
        out: the folder to publish; it must not exist unless `force`.
        target: `onnxruntime` or `genai`.
        precision: `as-is`, `fp32`, `fp16`, `int8` or `int4`; None takes what `inspect` recommends for the provider.
        provider: where it will run.
        block_size: weights per scale of int8 and int4.
        activations: `int8` or `float`, for the products of quantized weights.
        opset: version of the ONNX operators, where the target leaves a choice (`portable`: 21 to 25).
        method: `rtn`, `k-quant`, `hqq`, `gptq`, `awq` or `auto-round`, which makes the codes of int8 and int4.
        keep: rules PATTERN=PRECISION for weights that get another precision, as "lm_head=int8"; the last match counts.
        calibration: text in paragraphs (.txt) or lines of {"text": …} (.jsonl) for the last three, and to measure on.
        kv_cache: `float`, `int8` or `int4`: what keys and values are kept as; scales are the checkpoint's own where it
            has any, else calibrated on `calibration`, or on a text of truecast's.
        link_weights: refer to the checkpoint's own bytes where the graph can use them as they are (fp32).
        verify: whether to prove the result; without, the certificate says `unproven`.
        force: whether an artifact at `out` may be replaced.
        trust_remote_code: whether code that comes with the checkpoint may run.
        progress: called with stage, done and total.

    Raises:
        InputError: the input cannot be used; nothing was written.
        ProofError: the result is not the same model; it is kept as OUT.rejected.
    """
    from truecast import exporting
    from truecast.checkpoint import open_checkpoint
    from truecast.inspection import recommended_precision

    chosen = precision or recommended_precision(open_checkpoint(source), provider)
    request = exporting.Request(
        target=target,
        precision=chosen,
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
    )
    return Artifact(exporting.export(source, out, request, verify=verify, force=force, progress=progress), provider)


def open(folder: Path | str, provider: str = "cpu", threads: int | None = None) -> Artifact:
    """The artifact in `folder`; raises InputError when there is none."""
    return Artifact(folder, provider, threads)


def inspect(source: Path | str) -> Inspection:
    """What a checkpoint is, how it is stored, what it can become and what that will cost; loads nothing."""
    from truecast.inspection import inspect as look

    return look(Path(source))


def diagnose(
    path: Path | str, provider: str = "cpu", run: bool = False, session: Mapping[str, str] | None = None
) -> Diagnosis:
    """What goes wrong in silence with an ONNX file, whoever made it, on a provider.

    Args:
        path: an ONNX file, a folder with one, or an artifact.
        provider: where it is meant to run; it need not be installed unless `run`.
        run: whether to load and run it too, on made-up inputs.
        session: session keys that it is meant to run with.

    Raises:
        InputError: the file is missing, is no ONNX model, or the provider has no such name.
    """
    from truecast.diagnosis import diagnose as look

    return look(path, provider, run, session or {})


def repair(path: Path | str) -> Repair:
    """Mends what `diagnose` calls fixable, in a new file beside the model, and checks that its results are the same."""
    from truecast.diagnosis import repair as mend

    return mend(path)
