"""Export of encoders and other modules without a cache: the four moves, on `AuthorModule` in place of a decoder.

Data flow: what the user names → the author's module and its checkpoint (`trace.opening`) → graph → weights packed and
written as for decoders → rewritten by a library, where one was asked for → proven on a grid over every free axis →
published, or kept as OUT.rejected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from truecast.artifact import GRAPH_NAME, SAVED_NAME, Manifest, WeightInfo, sha256_of
from truecast.calibration.feeds import own_feeds, read_feeds
from truecast.calibration.ranges import seen_inputs
from truecast.checkpoint.memory import STATE, state_digest
from truecast.checkpoint.model import Checkpoint
from truecast.checkpoint.tasks import FEATURES, SENTENCES
from truecast.describing import (
    described,
    for_module,
    module_info,
    tensor_info,
    with_decoded,
    with_entries,
    with_setting,
)
from truecast.dialects import dialect
from truecast.dialects.ort.expand import expand
from truecast.errors import InputError
from truecast.exporting import Progress, rule_chooser, with_files, write
from truecast.halves.making import by_reach, by_rule, find_examples, with_islands
from truecast.measure.environment import environment
from truecast.publishing import published, require_apart, require_free, require_space
from truecast.request import Request
from truecast.request.checks import require_module
from truecast.request.meaning import half_of, packing
from truecast.runtime.integers import FULL, largest_code
from truecast.runtime.providers import PRECISE_ENTRIES, open_session
from truecast.targets import Target, find_target
from truecast.targets.side_files import write_side_files
from truecast.trace.author import AuthorModule
from truecast.trace.capture import array_of
from truecast.trace.cleaners import NONE, Cleaned, cleaned
from truecast.trace.cleanup import forget_inner_shapes
from truecast.trace.experts import modules_of_experts
from truecast.trace.module import ModuleTrace, trace_module
from truecast.trace.naming import canonical
from truecast.trace.opening import HALF_DTYPES, ModuleSource, open_author
from truecast.trace.outputs import drop_outputs
from truecast.trace.torchscript import LATEST, trace_torchscript
from truecast.weights.adopting import adopt_products
from truecast.weights.decoders import decoding_entries, swap_before_decoding
from truecast.weights.emitters import EMITTERS
from truecast.weights.integers import Seen
from truecast.weights.names import STATIC
from truecast.weights.packing import Packer
from truecast.weights.sources import Sources

__all__ = ["ModuleSource", "export_module"]

OTHER_TASK = "of another task's head, which this one leaves out"


KNOWN, DIVIDED = "input_ranges", "outlying_channels"
"""What the manifest's settings call the origin of ranges, and of outlying channels that are divided first."""
FROM_PROSE, FROM_EXAMPLES = "from truecast's own text", "from the calibration file"


def export_module(
    source: ModuleSource,
    out: Path | str,
    request: Request,
    progress: Progress | None = None,
) -> Path:
    """Casts the module that `source` names into the folder `out`; returns the folder.

    Raises:
        InputError: the input cannot be used; nothing was written.
        ProofError: the result is not the same model; it is kept as OUT.rejected with its certificate.
    """
    out = Path(out)
    require_module(request)
    _check_source(source, request)
    require_free(out, request.force)
    require_apart(out, (*([] if source.path is None else [source.path]), *request.paths))
    report = progress or (lambda stage, done, total: None)

    def make(staging: Path) -> Manifest:
        seen = _seen(source, staging.parent, request, report) if request.makes_integers else {}
        manifest = _cast(source, staging, request, report, seen)
        origin = FROM_PROSE if request.calibration is None else FROM_EXAMPLES
        if STATIC in request.precisions:
            manifest = with_setting(manifest, KNOWN, origin)
        if any(one.divisors is not None for one in seen.values()):
            manifest = with_setting(manifest, DIVIDED, origin)
        if not request.verify:
            return manifest
        from truecast.proof.modules import prove_module

        certificate = prove_module(staging, source, manifest, progress=report)
        return manifest.model_copy(update={"certificate": certificate})

    return published(out, make, request.force)


def _check_source(source: ModuleSource, request: Request) -> None:
    """Raises InputError for what is given and would not be heeded."""
    if source.module is None and source.factory is None:
        if source.example_inputs is not None:
            raise InputError(f"example_inputs are for a module, and {source.path} is a checkpoint; leave them out.")
        return
    if source.module is not None and source.factory is not None:
        raise InputError(f"--module {source.factory} makes a module, but one is given already; leave one of them out.")
    if source.task is not None:
        raise InputError(f"--task {source.task} is for a checkpoint's own files; a module has none, leave it out.")
    if request.link_weights:
        raise InputError("--link-weights is for a checkpoint's own files; a module has none, leave it out.")


def _seen(source: ModuleSource, beside: Path, request: Request, report: Progress) -> dict[str, Seen]:
    """What goes into every product, by its weight: the module in float32, run on examples.

    Nothing where there are no examples and products do not need them.
    """
    plain = replace(request, precision="fp32", keep=(), calibration=None, calibration_method="minmax", clean_up=NONE)
    with TemporaryDirectory(dir=beside, prefix=".calibration.") as scratch:
        folder = Path(scratch)
        info = _cast(source, folder, plain, report, {}).graph
        feeds = (
            own_feeds(folder, info) if request.calibration is None else read_feeds(request.calibration, folder, info)
        )
        if not feeds and STATIC in request.precisions:
            raise InputError(
                f"{STATIC} measures what goes into products on examples; add --calibration FILE (`calibration=`): "
                "text, or an .npz file with an array for each input."
            )
        if not feeds:
            return {}
        done = partial(report, "calibrate")
        return seen_inputs(folder, info.file, feeds, request.calibration_method, lambda n: done(n, len(feeds)))


@dataclass(frozen=True)
class _Written:
    """A graph in its folder, and what was learned on the way there.

    `weights` are as the manifest lists them, `ruled` the float32 islands by rule, `dropped` what to say of
    outputs left out, `entries` the session keys that the graph needs.
    """

    author: AuthorModule
    checkpoint: Checkpoint
    trace: ModuleTrace
    packer: Packer
    weights: list[WeightInfo]
    ignored: Mapping[str, str]
    ruled: Mapping[str, str]
    dropped: Sequence[str]
    rewritten: Cleaned | None
    entries: Mapping[str, str]


def _cast(source: ModuleSource, folder: Path, request: Request, report: Progress, seen: Mapping[str, Seen]) -> Manifest:
    """Reads, traces and binds into `folder`; returns the manifest with an unproven certificate."""
    target = find_target(request.target)
    written = _write(source, folder, request, report, seen, target.dialect)
    manifest = _described(written, source, request, target)
    write_side_files(written.checkpoint, target, manifest.graph, folder)
    if half_of(request) is not None:
        manifest = _with_islands(manifest, source, folder, request, written, report)
    bound = _saved(folder, request, written.entries) if request.save_optimized else []
    manifest = manifest.model_copy(update={"notices": [*manifest.notices, *bound]})
    return with_files(manifest, folder)


def _write(
    source: ModuleSource,
    folder: Path,
    request: Request,
    report: Progress,
    seen: Mapping[str, Seen],
    dialect_name: str,
) -> _Written:
    """Traces the module and writes its graph and weights."""
    report("trace", 0, 1)
    recorded = request.exporter == "torchscript"
    author, checkpoint = open_author(source, HALF_DTYPES.get(request.precision, torch.float32), fake=not recorded)
    if experts := modules_of_experts(author.module):
        raise InputError(
            f"{type(author.module).__name__} is a mixture of experts ({next(iter(experts))}) without a cache; "
            "so far experts are cast in decoders only, for text generation."
        )
    count = sum(parameter.numel() for parameter in author.module.parameters())
    require_space(folder, count * request.least_bits // 8)
    operators = dialect(dialect_name, request.opset)
    trace = trace_torchscript(author, request.opset or LATEST) if recorded else trace_module(author, operators)
    report("trace", 1, 1)
    beyond = OTHER_TASK if author.is_pretrained and source.task is not None else None
    checkpoint = trace.merge(checkpoint)
    sources = Sources(checkpoint, trace.parameters, trace.tied, trace.rename, beyond, partial=True)
    dropped = _drop_untrained(trace, sources) if author.task in (FEATURES, SENTENCES) else []
    exact = _exactness(trace.model)
    packer = _bind(trace, sources, request, dialect_name, seen)
    entries = {**exact, **decoding_entries(trace.model), **packer.session_entries}
    half = half_of(request)
    ruled = {} if half is None else by_rule(trace.model, half)
    weights = write(trace.model, packer, folder, request, report)
    rewritten = None if request.clean_up == NONE else cleaned(trace.model, request.clean_up)
    if rewritten is not None:
        trace = replace(trace, model=rewritten.model)
    ir.save(trace.model, folder / GRAPH_NAME)
    ignored = {**checkpoint.ignored, **sources.unused()}
    return _Written(author, checkpoint, trace, packer, weights, ignored, ruled, dropped, rewritten, entries)


def _exactness(model: ir.Model) -> Mapping[str, str]:
    """The session keys that make products of the author's own codes of 8 bits exact where this processor saturates.

    Codes that are made here have 7 bits there instead; a module that was trained with 8 keeps them.
    """
    coded = any(node.op_type == "DequantizeLinear" for node in model.graph)
    return PRECISE_ENTRIES if coded and largest_code() < FULL else {}


def _described(written: _Written, source: ModuleSource, request: Request, target: Target) -> Manifest:
    """The manifest of a written graph."""
    checkpoint = written.checkpoint
    hashes = {name: sha256_of(path) for name, path in checkpoint.file_names.items()} or {
        STATE: state_digest(checkpoint)
    }
    info = module_info(checkpoint, request, written.trace, written.author)
    manifest = described(checkpoint, target, request, info, written.weights, dict(written.ignored), hashes)
    manifest = for_module(manifest, written.author, source.factory, request.exporter)
    if written.rewritten is not None:
        manifest = with_setting(manifest, "clean_up", dict(written.rewritten.record))
    manifest = with_entries(with_decoded(manifest, written.packer.decoded), written.entries)
    return manifest.model_copy(update={"notices": [*manifest.notices, *written.dropped]})


def _with_islands(
    manifest: Manifest,
    source: ModuleSource,
    folder: Path,
    request: Request,
    written: _Written,
    report: Progress,
) -> Manifest:
    """Measures how far the written graph reaches, writes it again with its islands, and notes all of them."""
    half, model = half_of(request), written.trace.model
    assert half is not None
    if half.providers:  # its range is that of float32
        return with_islands(manifest, half, written.ruled, {}, "")
    author, _ = open_author(source)
    examples = find_examples(folder, manifest.graph, author.inputs, request.calibration)
    reached, origin = by_reach(model, half, folder, GRAPH_NAME, examples, report)
    ir.save(model, folder / GRAPH_NAME)
    ends = {
        "inputs": list(map(tensor_info, model.graph.inputs)),
        "outputs": list(map(tensor_info, model.graph.outputs)),
    }
    manifest = manifest.model_copy(update={"graph": manifest.graph.model_copy(update=ends)})  # some may be float32 now
    return with_islands(manifest, half, written.ruled, reached, origin)


def _drop_untrained(trace: ModuleTrace, sources: Sources) -> list[str]:
    """Drops what a model without a head gives besides and nobody trained; a task's own head must be there."""
    return drop_outputs(trace.model, lambda name: name in trace.buffers or sources.is_there(name))


def _saved(folder: Path, request: Request, entries: Mapping[str, str]) -> list[str]:
    """Saves the graph as ONNX Runtime rewrites it on this machine, weights included; says what that binds it to."""
    open_session(
        folder / GRAPH_NAME,
        request.provider,
        entries=entries,
        level=request.optimization,
        optimized_model=folder / SAVED_NAME,
    )
    where = environment()
    return [
        f"{SAVED_NAME} is the graph as ONNX Runtime {where['onnxruntime']} rewrote it at the level "
        f"{request.optimization} for this processor ({where['features']}); use it on the like of it only."
    ]


def _bind(
    trace: ModuleTrace, sources: Sources, request: Request, dialect_name: str, seen: Mapping[str, Seen]
) -> Packer:
    """Turns abstract operators into the target's, and binds every initializer."""
    model = trace.model
    for name, buffer in trace.buffers.items():
        if name in model.graph.initializers:
            model.graph.initializers[name].const_value = ir.tensor(array_of(buffer), name=name)
    if dialect(dialect_name).contrib:
        expand(model)
    RemoveUnusedNodesPass()(model)
    swap_before_decoding(model)
    adopt_products(model)
    emitter = EMITTERS[dialect_name]
    packer = Packer(model, sources, packing(request), trace.embedding, trace.head, emitter=emitter, seen=seen)
    packer.choose = rule_chooser(packer, request)
    packer.pack()
    forget_inner_shapes(model.graph)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    canonical(model)
    return packer
