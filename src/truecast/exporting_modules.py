"""Export of encoders and other modules without a cache: the four moves, on `AuthorModule` in place of a decoder.

Data flow: what the user names → the author's module and its checkpoint (`trace.opening`) → graph → weights packed and
written as for decoders → proven on a grid over every free axis → published, or kept as OUT.rejected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from truecast.artifact import GRAPH_NAME, SAVED_NAME, Manifest, require_free, sha256_of
from truecast.calibration.feeds import own_feeds, read_feeds
from truecast.calibration.ranges import seen_inputs
from truecast.checkpoint.memory import STATE, state_digest
from truecast.describing import described, for_module, module_info, with_decoded, with_entries
from truecast.dialects import dialect
from truecast.dialects.ort.expand import expand
from truecast.errors import InputError
from truecast.exporting import Progress, published, rule_chooser, with_files, write, write_side_files
from truecast.measure.environment import environment
from truecast.requesting import Request
from truecast.runtime.providers import open_session
from truecast.targets import find_target
from truecast.trace.experts import modules_of_experts
from truecast.trace.interface import forget_inner_shapes
from truecast.trace.module import ModuleTrace, trace_module
from truecast.trace.naming import canonical
from truecast.trace.opening import ModuleSource, open_author
from truecast.trace.outputs import drop_outputs
from truecast.trace.torchscript import LATEST, trace_torchscript
from truecast.weights.adopting import adopt_products
from truecast.weights.decoders import decoding_entries, swap_before_decoding
from truecast.weights.emitters import EMITTERS
from truecast.weights.integers import Seen
from truecast.weights.packing import Packer
from truecast.weights.precision import STATIC
from truecast.weights.sources import Sources

DTYPES: Mapping[str, torch.dtype] = {"fp16": torch.float16}
"""What a graph computes in; float32 for every other precision."""
__all__ = ["ModuleSource", "export_module"]

OTHER_TASK = "of another task's head, which this one leaves out"


KNOWN, DIVIDED = "input_ranges", "outlying_channels"
"""What the manifest's settings call the origin of ranges, and of outlying channels that are divided first."""
FROM_PROSE, FROM_EXAMPLES = "from truecast's own text", "from the calibration file"


def export_module(
    source: ModuleSource,
    out: Path | str,
    request: Request,
    *,
    verify: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Casts the module that `source` names into the folder `out`; returns the folder.

    Raises:
        InputError: the input cannot be used; nothing was written.
        ProofError: the result is not the same model; it is kept as OUT.rejected with its certificate.
    """
    out = Path(out)
    request.check_module()
    require_free(out, force)
    report = progress or (lambda stage, done, total: None)

    def make(staging: Path) -> Manifest:
        seen = _seen(source, staging.parent, request, report) if request.makes_integers else {}
        manifest = _cast(source, staging, request, report, seen)
        origin = FROM_PROSE if request.calibration is None else FROM_EXAMPLES
        if STATIC in request.precisions:
            manifest = _with_setting(manifest, KNOWN, origin)
        if any(one.divisors is not None for one in seen.values()):
            manifest = _with_setting(manifest, DIVIDED, origin)
        if not verify:
            return manifest
        from truecast.proof.modules import prove_module

        certificate = prove_module(staging, source, manifest, progress=report)
        return manifest.model_copy(update={"certificate": certificate})

    return published(out, make)


def _with_setting(manifest: Manifest, name: str, value: str) -> Manifest:
    return manifest.model_copy(update={"settings": manifest.settings | {name: value}})


def _seen(source: ModuleSource, beside: Path, request: Request, report: Progress) -> dict[str, Seen]:
    """What goes into every product, by its weight: the module in float32, run on examples.

    Nothing where there are no examples and products do not need them.
    """
    plain = replace(request, precision="fp32", keep=(), calibration=None, calibration_method="minmax")
    with TemporaryDirectory(dir=beside, prefix=".calibration.") as scratch:
        folder = Path(scratch)
        info = _cast(source, folder, plain, report, {}).graph
        feeds = (
            own_feeds(folder, info) if request.calibration is None else read_feeds(request.calibration, folder, info)
        )
        if not feeds and STATIC in request.precisions:
            raise InputError(f"{STATIC} measures what goes into products on examples; add --calibration FILE.")
        if not feeds:
            return {}
        done = partial(report, "calibrate")
        return seen_inputs(folder, info.file, feeds, request.calibration_method, lambda n: done(n, len(feeds)))


def _cast(source: ModuleSource, folder: Path, request: Request, report: Progress, seen: Mapping[str, Seen]) -> Manifest:
    """Reads, traces and binds into `folder`; returns the manifest with an unproven certificate."""
    target = find_target(request.target)
    report("trace", 0, 1)
    recorded = request.exporter == "torchscript"
    author, checkpoint = open_author(source, DTYPES.get(request.precision, torch.float32), fake=not recorded)
    if experts := modules_of_experts(author.module):
        raise InputError(
            f"{type(author.module).__name__} is a mixture of experts ({next(iter(experts))}) without a cache; "
            "so far experts are cast in decoders only, for text generation."
        )
    operators = dialect(target.dialect, request.opset)
    trace = trace_torchscript(author, request.opset or LATEST) if recorded else trace_module(author, operators)
    report("trace", 1, 1)
    beyond = OTHER_TASK if author.is_pretrained and source.task is not None else None
    sources = Sources(checkpoint, trace.parameters, trace.tied, trace.rename, beyond, partial=True)
    dropped = drop_outputs(trace.model, lambda name: name in trace.buffers or sources.is_there(name))
    packer = _bind(trace, sources, request, target.dialect, seen)
    entries = {**decoding_entries(trace.model), **packer.session_entries}
    weights = write(trace.model, packer, folder, request, report)
    ir.save(trace.model, folder / GRAPH_NAME)
    bound = _saved(folder, request, entries) if request.save_optimized else []
    hashes = {path.name: sha256_of(path) for path in checkpoint.files}
    if not hashes:
        hashes = {STATE: state_digest(checkpoint)}
    ignored = {**checkpoint.ignored, **sources.unused()}
    info = module_info(checkpoint, request, trace, author)
    manifest = described(checkpoint, target, request, info, weights, ignored, hashes)
    manifest = for_module(manifest, author, source.factory, request.exporter)
    manifest = with_entries(with_decoded(manifest, packer.decoded), entries)
    manifest = manifest.model_copy(update={"notices": [*manifest.notices, *dropped, *bound]})
    write_side_files(checkpoint, target, manifest, folder)
    return with_files(manifest, folder)


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
            model.graph.initializers[name].const_value = ir.tensor(buffer.numpy(), name=name)
    if dialect(dialect_name).contrib:
        expand(model)
    RemoveUnusedNodesPass()(model)
    swap_before_decoding(model)
    adopt_products(model)
    emitter = EMITTERS[dialect_name]
    packer = Packer(model, sources, request.packing(), trace.embedding, trace.head, emitter=emitter, seen=seen)
    packer.choose = rule_chooser(packer, request)
    packer.pack()
    forget_inner_shapes(model.graph)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    canonical(model)
    return packer
