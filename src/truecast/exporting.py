"""Export: the four moves in a row, from a checkpoint's path to a published, proven folder.

Data flow: read (checkpoint) → trace (graph without weights) → bind (weights streamed into a staging folder) → prove
(certificate) → publish, or keep as OUT.rejected. Whatever interrupts it, OUT and the source stay as they were.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from truecast import __version__
from truecast.artifact import (
    GRAPH_NAME,
    CacheInfo,
    Certificate,
    GraphInfo,
    Manifest,
    Source,
    Status,
    TensorInfo,
    WeightInfo,
    publish,
    reject,
    require_free,
    sha256_of,
    staging_folder,
    write_manifest,
)
from truecast.checkpoint import Checkpoint, open_checkpoint, require_float
from truecast.checkpoint.model import Array
from truecast.dialects import dialect
from truecast.dialects.ort.expand import expand
from truecast.dialects.ort.fuse import fuse_rotary, pack_heads
from truecast.errors import InputError, ProofError
from truecast.targets import Padding, Target, find_target
from truecast.trace.decoder import Trace, trace_decoder
from truecast.trace.interface import apply_interface
from truecast.trace.naming import canonical
from truecast.trace.skeleton import load_config
from truecast.weights.binding import Binding, array_binding
from truecast.weights.packing import Packer, Precision
from truecast.weights.quantize import BLOCK_SIZES
from truecast.weights.sources import Sources
from truecast.weights.writer import attach, attach_links, link_weights, write_weights

DATA_NAME = f"{GRAPH_NAME}.data"
PRECISIONS = ("fp32", "fp16", "int8", "int4")
ACTIVATIONS = ("int8", "float")

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the amount done and the amount in all."""


@dataclass(frozen=True)
class Request:
    """What is asked for. `precision` None means: what inspection recommends for the provider."""

    target: str = "onnxruntime"
    precision: str = "fp32"
    provider: str = "cpu"
    block_size: int = 32
    activations: str = "int8"
    link_weights: bool = False
    trust_remote_code: bool = False

    def check(self) -> None:
        """Raises InputError for a value that no export can take."""
        find_target(self.target)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("activations", self.activations, ACTIVATIONS)
        if self.link_weights and self.precision != "fp32":
            raise InputError(
                f"--link-weights keeps float32 bytes as they are; {self.precision} has none, leave it out."
            )
        if self.precision.startswith("int") and self.block_size not in BLOCK_SIZES:
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise InputError(f"MatMulNBits does not take the block size {self.block_size}; choose one of {sizes}.")

    def packing(self) -> Precision:
        """The precision as packing understands it."""
        dtype = ir.DataType.FLOAT16 if self.precision == "fp16" else ir.DataType.FLOAT
        bits = int(self.precision[3:]) if self.precision.startswith("int") else None
        return Precision(self.precision, dtype, bits, self.block_size, self.activations, self.link_weights)


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"There is no {what} {value!r}; choose one of {', '.join(known)}.")


def export(
    source: Path | str,
    out: Path | str,
    request: Request,
    *,
    verify: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Casts the checkpoint at `source` into the folder `out`; returns the folder.

    Raises:
        InputError: the input cannot be used; nothing was written.
        ProofError: the result is not the same model; it is kept as OUT.rejected with its certificate.
    """
    source, out = Path(source), Path(out)
    request.check()
    require_free(out, force)
    checkpoint = open_checkpoint(source)
    require_float(checkpoint)
    report = progress or (lambda stage, done, total: None)
    staging = staging_folder(out)
    try:
        manifest = _cast(checkpoint, staging, request, report)
        if verify:
            from truecast.proof import prove

            certificate = prove(
                staging, checkpoint, manifest, progress=progress, trust_remote_code=request.trust_remote_code
            )
            manifest = manifest.model_copy(update={"certificate": certificate})
        write_manifest(staging, manifest)
        if manifest.certificate.status is not Status.FAILED:
            return publish(staging, out)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise InputError(f"{out} could not be written: {error.strerror or error}.") from error
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    rejected = reject(staging, out)
    failed = [check for check in manifest.certificate.checks if not check.passed]
    raise ProofError(f"The result is not the same model: {_sentence(failed)} It is kept in {rejected}.")


def _sentence(failed: list[Any]) -> str:
    first = failed[0]
    more = f" ({len(failed)} checks failed)" if len(failed) > 1 else ""
    return (
        f"{first.tier}/{first.name} measured {first.measured} {first.unit}, limit {first.limit}{more}; {first.detail}."
    )


def _cast(checkpoint: Checkpoint, folder: Path, request: Request, report: Progress) -> Manifest:
    """Reads, traces and binds into `folder`; returns the manifest with an unproven certificate."""
    target = find_target(request.target)
    report("trace", 0, 1)
    trace = trace_decoder(
        load_config(checkpoint, request.trust_remote_code),
        dialect(target.dialect),
        dtype=torch.float16 if request.precision == "fp16" else torch.float32,
        padding=target.padding,
        trust_remote_code=request.trust_remote_code,
    )
    report("trace", 1, 1)
    sources = Sources(checkpoint, trace.parameters, trace.tied, trace.rename)
    packer = _bind(trace, sources, request, target)
    ignored = sources.unused()
    weights = _write(trace.model, packer, folder, request, report)
    ir.save(trace.model, folder / GRAPH_NAME)
    manifest = _manifest(checkpoint, target, request, trace, weights, ignored)
    _side_files(checkpoint, target, manifest, folder)
    hashes = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    return manifest.model_copy(update={"files": hashes})


def _write(model: ir.Model, packer: Packer, folder: Path, request: Request, report: Progress) -> list[WeightInfo]:
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
    length = _context_length(sources.checkpoint)
    if trace.padding == Padding.RIGHT and length:
        tables = fuse_rotary(model, length)
    expand(model)
    RemoveUnusedNodesPass()(model)
    apply_interface(trace, target.single_logits)
    packer = Packer(model, sources, request.packing(), trace.embedding, trace.head)
    packer.bindings += [array_binding(name, table, ROTARY_TABLE) for name, table in tables.items()]
    packer.pack()
    pack_heads(model)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    canonical(model)
    return packer


ROTARY_TABLE = "rotary table of the model's own module"


def _context_length(checkpoint: Checkpoint) -> int | None:
    length = checkpoint.config.get("max_position_embeddings") or checkpoint.config.get("n_positions")
    return int(length) if length else None


def _manifest(
    checkpoint: Checkpoint,
    target: Target,
    request: Request,
    trace: Trace,
    weights: list[WeightInfo],
    ignored: dict[str, str],
) -> Manifest:
    return Manifest(
        truecast=__version__,
        source=Source(
            path=str(checkpoint.path.resolve()),
            format=checkpoint.format,
            sha256={path.name: sha256_of(path) for path in checkpoint.files},
        ),
        target=target.name,
        dialect=target.dialect,
        provider=request.provider,
        precision=request.precision,
        settings={"block_size": request.block_size, "activations": request.activations}
        if request.precision.startswith("int")
        else {},
        graph=_graph_info(checkpoint, trace),
        weights=weights,
        ignored_tensors=ignored,
        files={},
        certificate=Certificate(status=Status.UNPROVEN),
    )


def _graph_info(checkpoint: Checkpoint, trace: Trace) -> GraphInfo:
    graph = trace.model.graph
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    vocabulary = graph.outputs[0].shape
    return GraphInfo(
        padding=trace.padding,
        opsets=dict(trace.model.opset_imports),
        ir_version=trace.model.ir_version,
        inputs=[_tensor_info(value) for value in inputs],
        outputs=[_tensor_info(value) for value in graph.outputs],
        cache=CacheInfo(
            layers=len(trace.cache_shapes),
            in_place=trace.in_place,
            dtype=_tensor_info(graph.outputs[1]).dtype,
        ),
        context_length=_context_length(checkpoint),
        vocab_size=None if vocabulary is None else int(vocabulary[-1]),  # type: ignore[arg-type]
        eos_token_ids=_eos(checkpoint),
        lowered=dict(sorted(trace.lowered.items())),
        traced=dict(sorted(trace.traced.items())),
    )


def _tensor_info(value: ir.Value) -> TensorInfo:
    assert value.shape is not None and value.dtype is not None
    shape = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
    return TensorInfo(name=value.name or "", dtype=str(value.dtype.numpy()), shape=shape)


def _eos(checkpoint: Checkpoint) -> list[int]:
    """The union of what config.json and generation_config.json say: the first often lacks the end of a turn."""
    ids: list[int] = []
    generation = checkpoint.side_files.get("generation_config.json")
    for source in (checkpoint.config, json.loads(generation()) if generation else {}):
        found = source.get("eos_token_id")
        ids += found if isinstance(found, list) else [] if found is None else [found]
    return sorted(set(ids))


def _side_files(checkpoint: Checkpoint, target: Target, manifest: Manifest, folder: Path) -> None:
    for name, content in checkpoint.side_files.items():
        (folder / name).write_bytes(content())
    target.write_side_files(folder, checkpoint.config, manifest.graph)
