"""What the manifest says of an export: its source, its graph, and what the user should know.

Data flow: checkpoint, trace, written weights and request → `described` → a `Manifest` that is not proven yet.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from truecast import __version__
from truecast.artifact import (
    CacheInfo,
    Certificate,
    GraphInfo,
    Manifest,
    Source,
    Status,
    TensorInfo,
    WeightInfo,
)
from truecast.checkpoint import Checkpoint
from truecast.checkpoint.model import StoredTensor
from truecast.request import Request
from truecast.request.meaning import integer_notice, runs_on, settings
from truecast.targets import Target
from truecast.targets.side_files import context_length, eos_token_ids, restarts_behind, tokens_without_rows
from truecast.trace.author import AuthorModule
from truecast.trace.beside import left_out
from truecast.trace.decoder import Trace
from truecast.trace.module import ModuleTrace
from truecast.weights.names import AS_IS


def described(
    checkpoint: Checkpoint,
    target: Target,
    request: Request,
    graph: GraphInfo,
    weights: list[WeightInfo],
    ignored: dict[str, str],
    hashes: dict[str, str],
) -> Manifest:
    """The manifest of written weights, unproven; `hashes` are those of the checkpoint's files, by name."""
    return Manifest(
        truecast=__version__,
        source=source_of(checkpoint, hashes),
        target=target.name,
        dialect=target.dialect,
        provider=runs_on(request),
        precision=request.precision,
        settings=settings(request),
        graph=graph,
        weights=weights,
        ignored_tensors=ignored,
        notices=[*notices_of(checkpoint, request), *tokens_without_rows(checkpoint, graph.vocab_size)],
        files={},
        certificate=Certificate(status=Status.UNPROVEN),
    )


def module_info(checkpoint: Checkpoint, request: Request, trace: ModuleTrace, author: AuthorModule) -> GraphInfo:
    """What a runtime must know about the graph of a module without a cache."""
    graph = trace.model.graph
    return GraphInfo(
        opsets=dict(trace.model.opset_imports),
        ir_version=trace.model.ir_version,
        inputs=[tensor_info(value) for value in graph.inputs],
        outputs=[tensor_info(value) for value in graph.outputs],
        optimization=request.optimization,
        axes={name: str(axis).partition("=")[2] or "1.." for name, axis in trace.axes.items()},
        limits={spec.name: spec.high for spec in author.inputs if spec.high is not None},
        context_length=context_length(checkpoint),
        lowered=dict(sorted(trace.lowered.items())),
        traced=dict(sorted(trace.traced.items())),
    )


def for_module(manifest: Manifest, author: AuthorModule, factory: str | None, exporter: str) -> Manifest:
    """Notes what the module is for, and what is needed to make it again."""
    asked = {} if factory is None else {"module": factory}
    asked |= {} if exporter == "dynamo" else {"exporter": exporter}
    missing = left_out(author) if author.is_pretrained else []
    notice = (
        f"{type(author.module).__name__} takes {', '.join(missing)} as well, for which the graph has no input; it "
        "gives what the author's code gives without."
    )
    changes = {"task": author.task, "settings": manifest.settings | asked}
    return manifest.model_copy(update=changes | {"notices": [*manifest.notices, *([notice] if missing else [])]})


def with_setting(manifest: Manifest, name: str, value: Any) -> Manifest:
    """Notes one more setting."""
    return manifest.model_copy(update={"settings": manifest.settings | {name: value}})


def with_decoded(manifest: Manifest, decoded: Sequence[StoredTensor]) -> Manifest:
    """Notes the quantized weights that could not be kept as they are."""
    if not decoded:
        return manifest
    kinds = list(dict.fromkeys(tensor.stored_as for tensor in decoded))
    more = f" and {len(kinds) - 1} other kinds" if len(kinds) > 1 else ""
    notice = (
        f"{len(decoded)} quantized weights became floats of the same values, since no operator holds them as they are "
        f"({kinds[0]}{more}); the first is {decoded[0].name}."
    )
    return manifest.model_copy(update={"notices": [*manifest.notices, notice]})


def with_unquantized(manifest: Manifest, floats: Sequence[StoredTensor]) -> Manifest:
    """Notes the weights that were to be quantized, and could not be."""
    if not floats:
        return manifest
    size = 4 * sum(math.prod(tensor.shape) for tensor in floats) / 1e6
    notice = (
        f"{len(floats)} weights of experts, {size:.3g} MB, stay float32, not {manifest.precision}: the operator of "
        f"experts takes rows of whole blocks of 16, and {floats[0].name} has the shape {list(floats[0].shape)}."
    )
    return manifest.model_copy(update={"notices": [*manifest.notices, notice]})


def with_entries(manifest: Manifest, entries: Mapping[str, str]) -> Manifest:
    """Notes session keys that the graph needs, for our own runtime and in words for others."""
    if not entries:
        return manifest
    listed = ", ".join(f"{key}={value}" for key, value in entries.items())
    notice = (
        f"In ONNX Runtime the graph is proven with the session configuration {listed}; set it in other loaders, too."
    )
    graph = manifest.graph.model_copy(update={"session_entries": dict(entries)})
    return manifest.model_copy(update={"graph": graph, "notices": [*manifest.notices, notice]})


def source_of(checkpoint: Checkpoint, hashes: dict[str, str]) -> Source:
    """Where an artifact came from."""
    # Links are not followed: the hashes are under the names of the files as given.
    adapter = None if checkpoint.adapter is None else str(checkpoint.adapter.path.absolute())
    # Those of GGUF files are made from the metadata, which the file's own hash covers.
    sides = checkpoint.side_files if checkpoint.format == "safetensors" else {}
    return Source(
        path=str(checkpoint.path.absolute()),
        format=checkpoint.format,
        adapter=adapter,
        sha256=hashes,
        side_sha256={name: hashlib.sha256(content()).hexdigest() for name, content in sides.items()},
    )


def notices_of(checkpoint: Checkpoint, request: Request) -> list[str]:
    """What the user should know before the weights are bound."""
    notices = list(checkpoint.notices)
    if (notice := integer_notice(request)) is not None:
        notices.append(notice)
    if checkpoint.quantization is not None and request.precision != AS_IS:
        notices.append(
            f"The checkpoint is quantized already ({checkpoint.quantization}); its weights were decoded and made "
            f"{request.precision} anew. --precision {AS_IS} keeps its own codes."
        )
    return notices


def decoder_info(checkpoint: Checkpoint, trace: Trace) -> GraphInfo:
    """What a runtime must know about the graph of a decoder."""
    graph = trace.model.graph
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    vocabulary = graph.outputs[0].shape
    rows = None if vocabulary is None else int(vocabulary[-1])  # type: ignore[arg-type]
    return GraphInfo(
        padding=trace.padding,
        opsets=dict(trace.model.opset_imports),
        ir_version=trace.model.ir_version,
        inputs=[tensor_info(value) for value in inputs],
        outputs=[tensor_info(value) for value in graph.outputs],
        cache=CacheInfo(
            layers=len(trace.states),
            in_place=trace.in_place,
            dtype=tensor_info(graph.outputs[1]).dtype,
        ),
        context_length=context_length(checkpoint),
        restarts_behind=restarts_behind(checkpoint),
        vocab_size=rows,
        eos_token_ids=eos_token_ids(checkpoint, rows),
        lowered=dict(sorted(trace.lowered.items())),
        traced=dict(sorted(trace.traced.items())),
    )


def tensor_info(value: ir.Value) -> TensorInfo:
    """An input or an output of a graph, whose shape and dtype are known."""
    assert value.shape is not None and value.dtype is not None
    shape = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
    return TensorInfo(name=value.name or "", dtype=str(value.dtype.numpy()), shape=shape)
