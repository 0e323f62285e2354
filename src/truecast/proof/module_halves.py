"""What is proven of a graph of 16 bits beside the rest: that it is one, and that it errs as such floats do.

Data flow: the graph as it lies → operators, kernels, norms and islands checked → its float32 twin, each result rounded
(`halves.twin`), whose bits are looked at → the twin's outputs beside those of the author's module in torch, cast to the
same float with the same weights, both against the author's module in float32.

| the twin | limit |
|---|---|
| against the author's module in float32 | 16·eps·sqrt(n + 1) of the largest value, n leaves lowered (`half_limit`) |
| against the author's module in 16 bits | sqrt(2) times as much: both sides round |
| its error over the grid, root mean square | 3 times that of the author's module in 16 bits |

eps is one rounding: 2^-11 for fp16, 2^-8 for bf16. The first two let a single point be far off, since errors of bf16
are large; the last one is strict, being a mean, and knows the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch

from truecast.artifact import Check, GraphInfo, Manifest
from truecast.diagnosis.inference import clashing_dtypes, forbidden_dtypes, node_types
from truecast.diagnosis.schemas import find_schema, standard
from truecast.halves.kernels import table_of, without_kernel
from truecast.halves.model import Half
from truecast.halves.nodes import WIDE, all_nodes, dtypes
from truecast.proof.held import HeldWeight
from truecast.proof.module_points import ModulePoint
from truecast.proof.operators import Array
from truecast.proof.parity import half_limit
from truecast.proof.reference import Reference
from truecast.proof.sessions import declared, open_twin
from truecast.proof.static import TIER as STATIC
from truecast.proof.tally import Worst, check, counted
from truecast.trace.author import AuthorModule
from truecast.trace.naming import NORMS
from truecast.trace.opening import HALF_DTYPES, ModuleSource, open_author

TIER = "parity"
FACTOR = 3.0
"""Largest error of the twin in units of the author's own in 16 bits. Errors of rounding add up like a random walk, so
this is nine roundings where torch has one: it keeps the inside of composite functions (a standard deviation, attention)
in float32, of which a graph may have the parts."""
TWIN = "its float32 twin, rounded"
"""What checks call it."""

Outputs = Mapping[str, Array]


def half_checks(folder: Path, model: ir.Model, manifest: Manifest, half: Half) -> list[Check]:
    """Every check that needs no session; the one named "kernels" says whether it would load where it is meant to."""
    checks = [
        counted(STATIC, "dtypes that the operators take", list(_dtype_faults(model)), "nodes"),
        counted(STATIC, "norms computed in float32", list(_norm_faults(model)), "nodes"),
        counted(STATIC, "float32 islands as in the manifest", list(_island_faults(model, manifest, half)), "nodes"),
    ]
    if all(standard(node.domain) or onnx.defs.has(node.op_type) for node in all_nodes(model)):
        checks.append(counted(STATIC, "onnx.checker, with inference of types", _checker(folder, manifest), "faults"))
    return checks


def table_check(model: ir.Model, half: Half) -> Check:
    """Whether every node of 16 bits has a kernel on the provider it is for, as far as the tables of a build tell."""
    faults = [f"{name}: {reason}" for name, reason in without_kernel(model, half).items()]
    detail = f"by the tables of ONNX Runtime {table_of(half).runtime} for {half.providers[0]}; no session was made"
    return counted(STATIC, "kernels", faults, "nodes", detail)


def _checker(folder: Path, manifest: Manifest) -> list[str]:
    try:
        onnx.checker.check_model(str(folder / manifest.graph.file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return [str(error).strip().splitlines()[0]]
    return []


def _dtype_faults(model: ir.Model) -> Iterator[str]:
    nodes = all_nodes(model)
    types = dtypes(model, nodes)
    opsets = {standard(domain): version for domain, version in model.opset_imports.items()}
    for node in nodes:
        schema = find_schema(node, opsets)
        if schema is None:
            continue
        if wrong := sorted(forbidden_dtypes(node, schema, types)):
            yield f"{node.name} ({node.op_type} takes no {wrong[0]})"
        for names in clashing_dtypes(schema, node_types(node, schema, types)):
            yield f"{node.name} ({node.op_type} has {' and '.join(sorted(names))})"


def _norm_faults(model: ir.Model) -> Iterator[str]:
    for node in all_nodes(model):
        inside = node.attributes.get("stash_type")
        if node.op_type in NORMS and inside is not None and inside.as_int() != WIDE:
            yield f"{node.name} ({node.op_type})"


def _island_faults(model: ir.Model, manifest: Manifest, half: Half) -> Iterator[str]:
    nodes = all_nodes(model)
    types = dtypes(model, nodes)
    by_name = {node.name: node for node in nodes}
    for name in manifest.graph.islands:
        node = by_name.get(name)
        if node is None:
            yield f"{name} is not in the graph"
        elif any(types.get(value) is half.dtype for value in (*node.inputs, *node.outputs) if value is not None):
            yield f"{name} ({node.op_type}) reads or gives {half.word}"


def rounding_check(folder: Path, info: GraphInfo, half: Half, feeds: Mapping[str, Array]) -> Check:
    """Whether every value of the twin that is of 16 bits in the graph is such a number: no cast was dropped."""
    session, names = open_twin(folder, info, half, watched=True)
    found = session.run(names, declared(session, feeds)) if names else []  # no names would be all outputs
    faults = [name for name, array in zip(names, found, strict=True) if not _is_rounded(array, half)]
    return counted(TIER, "the twin rounds every result", faults, "values", f"{len(names)} values looked at")


def _is_rounded(array: Array, half: Half) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(array.astype(half.dtype.numpy()).astype(array.dtype), array, equal_nan=True))


@dataclass
class _Sums:
    """Sums of squares over the grid of what one output is, and of the errors in it."""

    value: float = 0.0
    twin: float = 0.0
    torch: float = 0.0
    apart: Worst = field(default_factory=Worst)


@dataclass
class TorchHalf:
    """The author's module in 16 bits, in torch, with the weights that the artifact holds."""

    author: AuthorModule
    reference: Reference
    dtype: torch.dtype
    half: Half
    leaves: int
    sums: dict[str, _Sums] = field(default_factory=dict)
    refused: str = ""
    overflows: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, source: ModuleSource, half: Half, weights: Mapping[str, HeldWeight], leaves: int) -> TorchHalf:
        """Builds it; `leaves` counts the lowered leaves of the graph."""
        author, checkpoint = open_author(source, HALF_DTYPES[half.name])
        reference = Reference.of_module(author, checkpoint, source.trust_remote_code)
        author = replace(author, module=reference.model, mode=None)
        reference.load_held(weights)
        return cls(author, reference, HALF_DTYPES[half.name], half, leaves)

    def add(self, point: ModulePoint, want: Outputs, got: Outputs) -> None:
        """Compares at one point: `want` of the author's module in float32, `got` of the twin."""
        tensors = [tensor.to(self.dtype) if tensor.is_floating_point() else tensor for tensor in point.tensors]
        try:
            own = self.reference.outputs(self.author, tensors)
        except (RuntimeError, NotImplementedError) as error:
            self.refused = self.refused or str(error).splitlines()[0]
            return
        limit = 2**0.5 * half_limit(self.leaves, self.half.epsilon)
        for name, value in want.items():
            if name not in got or name not in own or got[name].shape != value.shape or value.dtype.kind != "f":
                continue
            exact, twin, torch_ = (np.asarray(array, np.float64) for array in (value, got[name], own[name]))
            finite = np.isfinite(exact)
            if not finite.any():
                continue
            exact, twin, torch_ = exact[finite], twin[finite], torch_[finite]
            if not np.isfinite(torch_).all():
                self.overflows.append(f"{name} at {point.name}")
                continue
            sums = self.sums.setdefault(name, _Sums())
            sums.value += float((exact**2).sum())
            sums.twin += float(((twin - exact) ** 2).sum())
            sums.torch += float(((torch_ - exact) ** 2).sum())
            scale = float(np.abs(exact).max()) or 1.0
            sums.apart.add(float(np.abs(twin - torch_).max()) / scale, limit, point.name)

    def checks(self) -> Iterator[Check]:
        """What was measured, output by output."""
        for name, sums in sorted(self.sums.items()):
            worst = sums.apart
            detail = f"worst at {worst.where}; {worst.count} points compared"
            title = f"{TWIN}, against the author's module in {self.half.word}, {name}"
            yield check(TIER, title, worst.value, worst.limit, "of the largest value", detail)
            least = self.half.epsilon * sums.value**0.5  # an output of few numbers may be hit by chance
            own = max(sums.torch**0.5, least) or 1.0
            share = sums.twin**0.5 / (sums.value**0.5 or 1.0)
            detail = f"the twin's is {share:.2e} of the values, root mean square over the grid"
            title = f"error of {TWIN}, beside the author's module's in {self.half.word}, {name}"
            yield check(TIER, title, sums.twin**0.5 / own, FACTOR, "times its error", detail)

    def notes(self) -> list[str]:
        """What could not be compared, and what was not seen."""
        word, said = self.half.word, []
        if self.refused:
            said.append(f"torch does not run the module in {word} on this processor ({self.refused}).")
        if self.overflows:
            said.append(
                f"In {word} the author's module itself gives NaN or infinity, {len(self.overflows)} times, as in "
                f"{self.overflows[0]}; there the graph is compared with float32 alone."
            )
        if self.half.providers:
            listed = " or ".join(self.half.providers)
            said.append(
                f"No {word} kernel of {listed} was run. What was run is the float32 twin: the same file with every "
                f"{word} operator computed in float32 and its result rounded to {word}."
            )
        else:
            said.append(
                f"{word} was run on the CPU provider, which computes nearly all of it in float32, unrounded; the "
                "float32 twin rounds every result, as a GPU does."
            )
        return said
