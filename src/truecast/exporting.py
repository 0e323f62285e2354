"""Export: the four moves in a row, from a checkpoint's path to a published, proven folder.

Data flow: read (checkpoint) → trace (graph without weights) → bind (weights streamed into a staging folder) → prove
(certificate) → publish, or keep as OUT.rejected. Whatever interrupts it, OUT and the source stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from truecast.artifact import GRAPH_NAME, Manifest, WeightInfo, sha256_of
from truecast.calibration.caching import SETTING, with_quantized_cache
from truecast.calibration.libraries import CALIBRATED, calibrated, library_version
from truecast.calibration.texts import read_texts
from truecast.checkpoint import Checkpoint, open_checkpoint
from truecast.checkpoint.castable import require_castable
from truecast.checkpoint.divisions import activation_scales
from truecast.checkpoint.model import Array
from truecast.checkpoint.tasks import GENERATION
from truecast.describing import (
    decoder_info,
    described,
    notices_of,
    source_of,
    with_decoded,
    with_entries,
    with_unquantized,
)
from truecast.dialects import dialect
from truecast.dialects.ort.expand import expand
from truecast.dialects.ort.fuse import fuse_rotary, pack_heads
from truecast.errors import InputError
from truecast.inspection.costs import weight_bytes
from truecast.publishing import published, require_apart, require_free, require_space
from truecast.request import Request
from truecast.request.checks import require_decoder
from truecast.request.meaning import packing, rules_of, settings
from truecast.runtime.text import added_ids
from truecast.targets import Padding, Target, find_target
from truecast.targets.side_files import context_length, eos_token_ids, write_side_files
from truecast.trace.decoder import Trace, trace_decoder
from truecast.trace.interface import apply_interface
from truecast.trace.naming import canonical
from truecast.trace.skeleton import load_config
from truecast.weights.binding import Binding, array_binding
from truecast.weights.cache import cached_attention
from truecast.weights.emitters import EMITTERS
from truecast.weights.names import AS_IS
from truecast.weights.packing import Packer, weights_of
from truecast.weights.precision import Precision
from truecast.weights.quantizers import DEFAULT_METHOD
from truecast.weights.rules import chooser
from truecast.weights.sources import Sources
from truecast.weights.writer import attach, attach_links, link_weights, write_weights

__all__ = ["Progress", "export"]

ESTIMATE = 0.9
"""Part of an estimate of weights that is sure to be needed: tables may be shared, and some tensors ignored."""
DATA_NAME = f"{GRAPH_NAME}.data"
Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the amount done and the amount in all."""


def export(
    source: Path | str,
    out: Path | str,
    request: Request,
    progress: Progress | None = None,
) -> Path:
    """Casts the checkpoint at `source` into the folder `out`; returns the folder.

    Raises:
        InputError: the input cannot be used; nothing was written.
        ProofError: the result is not the same model; it is kept as OUT.rejected with its certificate.
    """
    source, out = Path(source), Path(out)
    require_decoder(request)
    require_free(out, request.force)
    require_apart(out, (source, *request.paths))
    checkpoint = open_checkpoint(source, request.adapter)
    require_castable(checkpoint, GENERATION)
    texts = () if request.calibration is None else read_texts(request.calibration)
    report = progress or (lambda stage, done, total: None)

    eos_token_ids(checkpoint)  # whose files may be damaged

    def make(staging: Path) -> Manifest:
        require_space(staging, _least_bytes(checkpoint, request))
        if request.method in CALIBRATED:
            return _calibrated(checkpoint, staging, request, texts, report)
        manifest = _cast(checkpoint, staging, request, report, texts)
        return _certified(staging, checkpoint, manifest, request, texts, report)

    return published(out, make, request.force)


def _least_bytes(checkpoint: Checkpoint, request: Request) -> int:
    """Bytes that the weights take at least, before anything is known but the headers."""
    if request.link_weights:
        return 0
    sizes = (weight_bytes(checkpoint, precision, request.block_size).disk for precision in request.precisions)
    return int(ESTIMATE * min(sizes))


def _certified(
    folder: Path,
    checkpoint: Checkpoint,
    manifest: Manifest,
    request: Request,
    texts: tuple[str, ...],
    report: Progress,
    original: Checkpoint | None = None,
) -> Manifest:
    """The manifest with the proof's certificate; without a proof, what a better method has won is still measured."""
    if not request.verify and request.method == DEFAULT_METHOD:
        return manifest
    from truecast import proof

    trusted = request.trust_remote_code
    if request.verify:
        certificate = proof.prove(
            folder,
            checkpoint,
            manifest,
            progress=report,
            trust_remote_code=trusted,
            texts=texts,
            original=original,
        )
    else:
        noise = proof.measured_noise(folder, original or checkpoint, manifest, trusted)
        certificate = manifest.certificate.model_copy(update={"signal_to_noise": noise})
    return manifest.model_copy(update={"certificate": certificate})


def _calibrated(
    checkpoint: Checkpoint, folder: Path, request: Request, texts: tuple[str, ...], report: Progress
) -> Manifest:
    """Casts what a library made of the checkpoint, and proves it against the library's own checkpoint."""
    bits = int(request.precision.removeprefix("int"))
    with TemporaryDirectory(dir=folder.parent, prefix=".calibration.") as scratch:
        report("calibrate", 0, 1)
        given = calibrated(
            checkpoint, request.method, bits, request.block_size, texts, Path(scratch), request.trust_remote_code
        )
        report("calibrate", 1, 1)
        cast = _cast(given, folder, replace(request, precision=AS_IS), report, texts, checkpoint)
        asked = {
            "source": source_of(checkpoint, {name: sha256_of(path) for name, path in checkpoint.file_names.items()}),
            "precision": request.precision,
            "settings": _kept(cast) | settings(request) | {"library": library_version(request.method)},
            "notices": notices_of(checkpoint, request),
        }
        manifest = cast.model_copy(update=asked)
        manifest = _certified(folder, given, manifest, request, texts, report, original=checkpoint)
    known = {*checkpoint.tensors, *checkpoint.ignored}
    ignored = {name: reason for name, reason in manifest.ignored_tensors.items() if name in known}
    return manifest.model_copy(update={"ignored_tensors": ignored})


def _kept(cast: Manifest) -> dict[str, Any]:
    """The settings that only the cast could tell."""
    return {name: value for name, value in cast.settings.items() if name == SETTING}


def _cast(
    checkpoint: Checkpoint,
    folder: Path,
    request: Request,
    report: Progress,
    texts: tuple[str, ...] = (),
    asked: Checkpoint | None = None,
) -> Manifest:
    """Reads, traces and binds into `folder`; returns the manifest with an unproven certificate.

    What goes along with the weights comes from `asked`, where the weights come from what a library made of it.
    """
    asked = asked or checkpoint
    target = find_target(request.target)
    with ThreadPoolExecutor(1) as aside:  # hashing needs no Python: it goes on while the model is traced
        hashes = aside.submit(lambda: {name: sha256_of(path) for name, path in checkpoint.file_names.items()})
        trace = _trace(checkpoint, target, request, report)
        sources = Sources(trace.merge(checkpoint), trace.parameters, trace.tied, trace.rename)
        packer = _bind(trace, sources, request, target)
        if request.cache_bits is not None:  # before the weights are written
            cached_attention(trace.model)
        fitted = sources.checkpoint
        ignored = {**fitted.ignored, **sources.unused()}
        weights = write(trace.model, packer, folder, request, report)
    ir.save(trace.model, folder / GRAPH_NAME)
    info = decoder_info(asked, trace)
    manifest = described(fitted, target, request, info, weights, ignored, hashes.result())
    manifest = with_unquantized(with_decoded(manifest, packer.decoded), packer.unquantized)
    manifest = with_entries(manifest, packer.session_entries)
    write_side_files(asked, target, manifest.graph, folder)
    if request.cache_bits is not None:
        given = (checkpoint, request.cache_bits, texts, report)
        manifest = with_quantized_cache(folder, trace.model, DATA_NAME, manifest, *given)
    return with_files(manifest, folder)


def with_files(manifest: Manifest, folder: Path) -> Manifest:
    """Notes what the tokenizer adds, and the hash of every file but the data file, which those of the weights cover."""
    others = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != DATA_NAME]
    hashes = {path.relative_to(folder).as_posix(): sha256_of(path) for path in others}
    graph = manifest.graph.model_copy(update=added_ids(folder))
    return manifest.model_copy(update={"files": hashes, "graph": graph})


def _trace(checkpoint: Checkpoint, target: Target, request: Request, report: Progress) -> Trace:
    report("trace", 0, 1)
    trace = trace_decoder(
        load_config(checkpoint, request.trust_remote_code),
        dialect(target.dialect, request.opset),
        dtype=torch.float16 if request.precision == "fp16" else torch.float32,
        padding=target.padding,
        trust_remote_code=request.trust_remote_code,
        scales=activation_scales(checkpoint),
    )
    others = {state.part for states in trace.states.values() for state in states} - target.states
    if others:
        raise InputError(
            f"The target {target.name} carries keys and values from token to token only, and the layers of this model "
            f"carry others ({', '.join(sorted(others))}); choose the target onnxruntime."
        )
    report("trace", 1, 1)
    return trace


def write(model: ir.Model, packer: Packer, folder: Path, request: Request, report: Progress) -> list[WeightInfo]:
    """Writes or links the weights, and makes the graph refer to them."""
    linked: list[Binding] = []
    written: list[Binding] = []
    for binding in packer.bindings:
        (linked if request.link_weights and binding.verbatim is not None else written).append(binding)
    weights = link_weights(folder, linked)
    attach_links(model, linked, folder)
    if written:
        weights += write_weights(folder / DATA_NAME, written, lambda done, total: report("weights", done, total))
        attach(model, written, packer.aliases, DATA_NAME, folder)
    return weights


def _bind(trace: Trace, sources: Sources, request: Request, target: Target) -> Packer:
    """Turns abstract operators into the target's, and binds every initializer."""
    model = trace.model
    for name, buffer in trace.buffers.items():
        if name in model.graph.initializers:
            model.graph.initializers[name].const_value = ir.tensor(buffer.numpy(), name=name)
    tables: dict[str, Array] = {}
    length = context_length(sources.checkpoint)
    if trace.padding == Padding.RIGHT and length:
        tables = fuse_rotary(model, length)
    expand(model)
    RemoveUnusedNodesPass()(model)
    apply_interface(trace, target.single_logits)
    emitter = EMITTERS[target.dialect]
    packer = Packer(model, sources, packing(request), trace.embedding, trace.head, emitter=emitter)
    packer.choose = rule_chooser(packer, request)
    packer.bindings += [array_binding(name, table, ROTARY_TABLE) for name, table in tables.items()]
    packer.pack()
    pack_heads(model)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    canonical(model)
    return packer


def rule_chooser(packer: Packer, request: Request) -> Callable[[str], Precision]:
    """The precision of every weight, by the request's rules; raises InputError for one that no weight follows."""
    named = [name for node in packer.model.graph for name in weights_of(node)]
    tied = (packer.embedding, packer.head) if packer.tied else None
    first = [packer.embedding] if packer.embedding else []
    weights = [*first, *(name for name in dict.fromkeys(named) if name != packer.embedding)]
    precisions = {rule.precision: packing(request, rule.precision) for rule in rules_of(request)}
    choose = chooser(rules_of(request), weights, tied, precisions, packer.precision)
    made = [weight for weight in weights if packer.sources[weight].encoding is not None]
    if request.method in CALIBRATED and any(choose(weight) is not packer.precision for weight in made):
        raise InputError(
            f"--keep names weights that --method {request.method} has quantized; "
            "with it, a rule may only name what it leaves in float: the head and the token embedding."
        )
    return choose


ROTARY_TABLE = "rotary table of the model's own module"
