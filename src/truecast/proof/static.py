"""Tier 1, the graph: what can be said without running it, and whether ONNX Runtime has a kernel for every node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from truecast.artifact import Check, Manifest
from truecast.dialects import dialect
from truecast.proof.experts import rounds
from truecast.proof.tally import broken, check, counted
from truecast.runtime.providers import ASSIGNMENT_KEY, LOAD_ERRORS, PAIRED_KEY, session_options
from truecast.states import PARTS, StateTensor, is_past
from truecast.trace.capture import BATCH, NEW, PAST

TIER = "static"
LARGEST_OPSET, LARGEST_IR = 26, 13
"""What ONNX Runtime 1.31 loads (27 only with an environment variable)."""
CPU = "CPUExecutionProvider"
INT8_LEVEL = 4
"""MatMulNBits' accuracy level at which activations become int8."""

SYMBOLS: Mapping[str, tuple[str, ...]] = {
    "input_ids": ("batch_size", "sequence_length"),
    "attention_mask": ("batch_size", "total_sequence_length"),
    "position_ids": ("batch_size", "sequence_length"),
}
CACHE_LENGTHS = ("total_sequence_length", "past_sequence_length")
"""What the growing axis of keys and values is called, in outputs and in inputs: names that other loaders look for."""

TRACE_SIZES = frozenset({NEW, PAST, NEW + PAST, BATCH * NEW, BATCH * PAST, BATCH * (NEW + PAST)})
"""Sizes of the trace: unlikely in a model, so that one of them in a shape is probably a baked-in axis."""
SHAPE_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Reshape": (1,),
    "Expand": (1,),
    "Slice": (1, 2),
    "ConstantOfShape": (0,),
}
"""Inputs of operators that are sizes or bounds."""


def graph_checks(model: ir.Model, manifest: Manifest, config: Mapping[str, Any]) -> list[Check]:
    """Every check of the graph that needs no session."""
    opset = model.opset_imports.get("", 0)
    return [
        check(
            TIER,
            "opset",
            float(opset),
            LARGEST_OPSET,
            "",
            f"domains {', '.join(sorted(model.opset_imports)) or 'none'}",
        ),
        check(TIER, "IR version", float(model.ir_version), LARGEST_IR),
        counted(TIER, "float64 tensors", list(doubles(model)), "tensors"),
        counted(TIER, "dynamic axes", list(_axis_faults(model, manifest)), "faults", "named as the contract says"),
        counted(TIER, "sizes of the trace in shapes", list(_literals(model, config)), "constants"),
        counted(TIER, "interface as in the manifest", list(interface_faults(model, manifest)), "faults"),
        counted(TIER, "activations as in the manifest", list(activation_faults(model, manifest)), "products"),
        *standard_checks(model, manifest),
    ]


def standard_checks(model: ir.Model, manifest: Manifest) -> list[Check]:
    """Whether a graph that promises standard operators has no other, nor one that its opset does not know."""
    if dialect(manifest.dialect).contrib:
        return []
    opset = model.opset_imports.get("", 0)
    foreign = [
        f"{node.name} ({node.domain or 'ONNX'} {node.op_type})"
        for node in model.graph
        if node.domain or not onnx.defs.has(node.op_type, opset)
    ]
    return [counted(TIER, "operators outside ONNX", foreign, "nodes", f"opset {opset}")]


def doubles(model: ir.Model) -> Iterator[str]:
    """Values of float64: no kernel of a GPU is made for them, and few of a processor's."""
    double = ir.DataType.DOUBLE
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        if value.dtype == double:
            yield f"{value.name}"
    for node in model.graph:
        tensor = ir.convenience.get_const_tensor(node.outputs[0]) if node.op_type == "Constant" else None
        to = node.attributes.get("to")
        if (
            (tensor is not None and tensor.dtype == double)
            or (to is not None and to.as_int() == double)
            or any(value.dtype == double for value in node.outputs)
        ):
            yield f"{node.name} ({node.op_type})"


def dims(value: ir.Value) -> list[int | str | None]:
    """The sizes of a value: numbers, names, or None."""
    return [] if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]


def _axis_faults(model: ir.Model, manifest: Manifest) -> Iterator[str]:
    optional = set(model.graph.initializers)
    for value in model.graph.inputs:
        name = value.name or ""
        if name in SYMBOLS and tuple(dims(value)) != SYMBOLS[name]:
            yield f"{name} is {dims(value)}, not {list(SYMBOLS[name])}"
        elif name not in SYMBOLS and StateTensor.named(name) is None and name not in optional:
            yield f"the contract has no input {name}"
    for value in (*model.graph.inputs, *model.graph.outputs):
        if (state := StateTensor.named(value.name)) is not None:
            yield from _state_faults(value, state)
    logits = dims(model.graph.outputs[0])
    vocabulary = manifest.graph.vocab_size
    if len(logits) != 3 or logits[0] != "batch_size" or logits[2] != vocabulary or logits[1] in TRACE_SIZES | {BATCH}:
        yield f"{model.graph.outputs[0].name} is {logits}"


def _state_faults(value: ir.Value, state: StateTensor) -> Iterator[str]:
    """Keys and values have one more axis that is free; everything else keeps its size."""
    sizes, length = dims(value), CACHE_LENGTHS[is_past(value.name)]
    free = ["batch_size", None, length, None] if state.part in PARTS else ["batch_size"]
    named = [size if isinstance(size, str) else None for size in sizes]
    if None in sizes or named != free + [None] * (len(sizes) - len(free)):
        wanted = f"[batch_size, heads, {length}, width]" if state.part in PARTS else "[batch_size] and fixed sizes"
        yield f"{value.name} is {sizes}, not {wanted}"


def _literals(model: ir.Model, config: Mapping[str, Any]) -> Iterator[str]:
    """Constants in shapes that are sizes of the trace and of nothing in the model."""
    known = set(_integers(config)) | {
        d for v in model.graph.initializers.values() for d in dims(v) if isinstance(d, int)
    }
    known |= {d for v in (*model.graph.inputs, *model.graph.outputs) for d in dims(v) if isinstance(d, int)}
    for node in model.graph:
        for index in SHAPE_INPUTS.get(node.op_type, ()):
            value = node.inputs[index] if index < len(node.inputs) else None
            tensor = ir.convenience.get_const_tensor(value) if value is not None else None
            if tensor is None:
                continue
            values = np.atleast_1d(tensor.numpy()).tolist()
            found = sorted((TRACE_SIZES - known) & set(values))
            first = (
                node.op_type in ("Reshape", "Expand") and len(values) > 1 and values[0] == BATCH and BATCH not in known
            )
            if found or first:
                yield f"{node.op_type} {node.name} has {values}"


def _integers(config: Any) -> Iterator[int]:
    if isinstance(config, Mapping):
        for value in config.values():
            yield from _integers(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _integers(value)
    elif isinstance(config, int):
        yield config


def interface_faults(model: ir.Model, manifest: Manifest) -> Iterator[str]:
    """Inputs and outputs that are not what the manifest says."""
    graph = model.graph
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    for values, infos in ((inputs, manifest.graph.inputs), (graph.outputs, manifest.graph.outputs)):
        got = {v.name: (str(v.dtype.numpy()) if v.dtype else None, dims(v)) for v in values}
        want = {info.name: (info.dtype, info.shape) for info in infos}
        for name in sorted({n or "" for n in got} ^ set(want)):
            yield f"{name} is in one of graph and manifest only"
        for name in sorted(set(want) & {n or "" for n in got}):
            if got[name] != want[name]:
                yield f"{name} is {got[name]} in the graph and {want[name]} in the manifest"


def activation_faults(model: ir.Model, manifest: Manifest) -> Iterator[str]:
    """Products of codes that round their activations although the manifest says floats."""
    if manifest.settings.get("activations") != "float":
        return
    for node in model.graph:
        level = node.attributes.get("accuracy_level")
        if rounds(node) or (level is not None and level.as_int() == INT8_LEVEL):
            yield f"{node.name} takes int8 activations"
        elif node.op_type == "DequantizeLinear" and manifest.graph.session_entries.get(PAIRED_KEY) != "0":
            yield f"{node.name} would become a product with int8 activations: {PAIRED_KEY} is not 0"


def kernel_check(folder: Path, model: ir.Model, file: str) -> Check:
    """Loads the graph as written and reads back where every node went; nodes without a kernel make the load fail."""
    options = session_options(entries={ASSIGNMENT_KEY: "1"})
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(folder / file), options, providers=[CPU], enable_fallback=0)
    except LOAD_ERRORS as error:
        return broken(TIER, "kernels", f"ONNX Runtime does not load the graph: {str(error).strip().splitlines()[0]}")
    places = {n.name: part.ep_name for part in session.get_provider_graph_assignment_info() for n in part.get_nodes()}
    nodes = [node for node in model.graph if node.op_type != "Constant"]
    elsewhere = [f"{name} runs on {place}" for name, place in places.items() if place != CPU]
    inlined = sorted({node.op_type for node in nodes if node.name not in places})
    detail = f"{len(nodes)} nodes" + (
        f"; without a kernel of their own, run as their parts: {', '.join(inlined)}" if inlined else ""
    )
    return counted(TIER, "kernels", elsewhere, "nodes elsewhere", detail)
