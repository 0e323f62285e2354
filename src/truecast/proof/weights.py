"""Tier 1, the weights: each one in the artifact, against the checkpoint, one to one.

Every initializer is listed in the manifest and has the listed hash, every parameter of the author's model is held,
every checkpoint tensor is used or ignored for a reason, and every held value is what the checkpoint's value becomes:

| packing | bound on |w - held| |
|---|---|
| dense | 0: the same value after the cast, in 16 bits the same bits as torch's cast gives |
| the checkpoint's own codes and scales | 0, or what rounding twice leaves; see `own` |
| round to nearest | the same codes and scales, made again; see `rounding` |
| searched: k-quant, hqq | by block and by code, see `searched` |

The bound follows from the checkpoint and the format alone. It does not use the artifact's own scale, with which a scale
that is too large would excuse the errors it makes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from truecast.artifact import Check, Manifest
from truecast.checkpoint.model import StoredTensor
from truecast.proof.held import HeldWeight, aliases, bytes_of, is_external, row_chunks
from truecast.proof.operators import Array
from truecast.proof.own import own_shares
from truecast.proof.reference import Reference
from truecast.proof.rounding import rounded_shares
from truecast.proof.searched import searched_shares
from truecast.proof.tally import Worst, check, counted
from truecast.weights.sources import finite_rows

TIER = "static"
SMALL_BYTES = 1 << 16
"""Largest constant that may lie in the graph itself without being a weight."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fault:
    """A weight that is not the checkpoint's: its parameter, the bound's share it takes, and a sentence."""

    parameter: str
    initializers: tuple[str, ...]
    share: float
    detail: str


def accounting_checks(
    model: ir.Model, manifest: Manifest, reference: Reference, weights: Mapping[str, HeldWeight]
) -> list[Check]:
    """Whether graph, manifest, author's model and checkpoint list the same weights."""
    names = [name for info in manifest.weights for name in info.initializers]
    listed = set(names)
    external = {name for name, value in model.graph.initializers.items() if is_external(value)}
    external -= set(aliases(model, listed))
    used = {name for info in manifest.weights for name in info.sources} | set(manifest.ignored_tensors)
    tensors = {*reference.sources.checkpoint.tensors, *reference.sources.checkpoint.ignored}
    faults = [f"{n} is listed twice" for n in sorted({n for n in names if names.count(n) > 1})]
    faults += [f"{n} is in the graph but not in the manifest" for n in sorted(external - listed)]
    faults += [f"{n} is in the manifest but not in the graph" for n in sorted(listed - external)]
    faults += [f"parameter {n} is in no weight" for n in _unheld(manifest, reference, weights)]
    faults += [f"tensor {n} is neither used nor ignored" for n in sorted(tensors - used)]
    faults += [f"tensor {n} is not in the checkpoint" for n in sorted(used - tensors)]
    detail = f"{len(listed)} initializers, {len(tensors)} checkpoint tensors"
    return [
        counted(TIER, "weights accounted for", faults, "faults", detail),
        counted(TIER, "constants", _constant_faults(model, reference), "faults"),
    ]


def _unheld(manifest: Manifest, reference: Reference, weights: Mapping[str, HeldWeight]) -> Iterator[str]:
    """Parameters that no weight holds; a module's graph may leave out what its outputs do not depend on."""
    sources = reference.sources
    for name in reference.parameters:
        left_out = sources.partial and (not sources.is_there(name) or sources[name].name in manifest.ignored_tensors)
        if reference.held(name, weights) is None and not left_out:
            yield name


def _constant_faults(model: ir.Model, reference: Reference) -> list[str]:
    """Initializers inside the graph: small, and the author's buffers unchanged where they carry a buffer's name."""
    buffers = dict(reference.model.named_buffers())
    faults = []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            faults.append(f"{name} has no value")
        elif not is_external(value) and tensor.nbytes > SMALL_BYTES:
            faults.append(f"{name} is in the graph file itself, with {tensor.nbytes} bytes")
        elif not is_external(value) and name in buffers:
            want = buffers[name].numpy().astype(tensor.numpy().dtype)
            if not np.array_equal(want, tensor.numpy()):
                faults.append(f"{name} is not the author's buffer")
    return faults


def hash_check(model: ir.Model, manifest: Manifest) -> Check:
    """Whether the bytes of every weight have the hash that the manifest gives."""
    faults = []
    for info in manifest.weights:
        if any(name not in model.graph.initializers for name in info.initializers):
            continue
        digest = hashlib.sha256()
        for name in info.initializers:
            for start, stop in row_chunks((len(content := bytes_of(model, name)),)):
                digest.update(content[start:stop].data)
        if digest.hexdigest() != info.sha256:
            faults.append(f"the bytes of {info.initializers[0]} are not those that were written")
    return counted(TIER, "hashes of the weights", faults, "weights", f"{len(manifest.weights)} weights")


def value_check(
    reference: Reference, weights: Mapping[str, HeldWeight], progress: Progress | None = None
) -> tuple[Check, list[Fault]]:
    """Compares every held weight with the checkpoint's; also returns the ones that are wrong, the worst first."""
    worst, faults = Worst(), []
    for index, weight in enumerate(weights.values()):
        share, detail = _share(reference, weight)
        worst.add(share, 1.0, detail)
        if not share <= 1.0:
            faults.append(Fault(weight.parameter, weight.initializers, share, detail))
        if progress:
            progress(index + 1, len(weights))
    name = "weights are the checkpoint's"
    result = check(TIER, name, worst.value, 1.0, "of the bound", f"worst: {worst.where}; {len(weights)} weights")
    return result, sorted(faults, key=lambda fault: -fault.share)


def _share(reference: Reference, weight: HeldWeight) -> tuple[float, str]:
    """The largest share of its bound that any value takes, and where."""
    if weight.parameter not in reference.sources.parameters:
        return np.inf, f"{weight.parameter} is no parameter of the model"
    stored = reference.sources[weight.parameter]
    if tuple(stored.shape) != _shape(reference, weight):
        return np.inf, f"{weight.parameter} has the shape {weight.shape}, not {stored.shape}"
    worst, where = 0.0, f"{weight.parameter}, exact"
    for start, values, held in pairs(reference, stored, weight):
        shares = _shares(stored, values, held, weight, start)
        if not shares.max(initial=0.0) <= worst:  # NaN counts as worse
            worst = float(shares.max())
            row = int(shares.reshape(len(shares), -1).max(1).argmax())
            where = f"{weight.parameter}, {_place(weight, start, row)}"
    return worst, where


def _shape(reference: Reference, weight: HeldWeight) -> tuple[int, ...]:
    """The shape of the author's parameter that has a weight's values."""
    form = reference.experts.get(weight.parameter)
    if weight.stack is not None and form is not None:
        return (weight.shape[0], *weight.stack.as_parameter(np.empty((1, *weight.shape[1:])), form).shape[1:])
    return weight.shape[::-1] if reference.turned(weight) else weight.shape


def _place(weight: HeldWeight, start: int, row: int) -> str:
    outputs = weight.shape[1] if weight.stack is not None and len(weight.shape) == STACKED else 0
    return f"expert {start + row // outputs}, row {row % outputs}" if outputs else f"row {start + row}"


STACKED = 3
"""Axes of a weight of experts: [experts, out, in]."""


def pairs(reference: Reference, stored: StoredTensor, weight: HeldWeight) -> Iterator[tuple[int, Array, Array]]:
    """First row, checkpoint's values, and held ones, in the held orientation; read row by row on both sides.

    The rows of experts are experts; their matrices are given one below the other.
    """
    turned, form = reference.turned(weight), reference.experts.get(weight.parameter)
    if weight.stack is not None and form is not None:
        for start, stop in weight.chunks():
            values = weight.stack.as_held(finite_rows(stored, start, stop), form)
            flat = (-1, values.shape[-1])
            yield start, values.reshape(flat), weight.rows(start, stop).reshape(flat)
    elif not turned:
        for start, stop in weight.chunks():
            yield start, finite_rows(stored, start, stop), weight.rows(start, stop)
    elif weight.quantization is None:
        for start, stop in row_chunks(stored.shape):
            yield start, finite_rows(stored, start, stop), weight.rows(0, weight.shape[0])[:, start:stop].T
    else:  # a block runs along the checkpoint's rows: the whole tensor is needed
        yield 0, np.ascontiguousarray(finite_rows(stored, 0, stored.shape[0]).T), weight.rows(0, weight.shape[0])


def _shares(stored: StoredTensor, values: Array, held: Array, weight: HeldWeight, start: int) -> Array:
    if weight.own and stored.encoding is not None:
        moved = weight.quantization is not None and weight.quantization.moved
        return own_shares(stored.encoding, values, held, start, moved)
    if weight.quantization is None or weight.own:
        return _dense_shares(values, held)
    if (ends := weight.quantization.ends) is not None:
        count = len(held) // weight.shape[1] if weight.stack is not None else len(held)
        low, high = (read(start, start + count).reshape(held.shape) for read in ends)
        return searched_shares(values, held, (low, high), weight.quantization.bits, weight.quantization.block)
    return _block_shares(values, held, weight)


def _dense_shares(values: Array, held: Array) -> Array:
    values = values.reshape(held.shape)
    if values.dtype == np.float32 and held.dtype in TORCH_HALVES:  # bit for bit as torch rounds, whoever wrote it
        rounded = torch.from_numpy(np.array(values)).to(TORCH_HALVES[held.dtype])
        same: Array = rounded.view(torch.int16).numpy() == held.view(np.int16)
        return np.where(same, 0.0, np.inf)
    with np.errstate(over="ignore"):
        same = values.astype(held.dtype) == held
    return np.where(same, 0.0, np.inf)


TORCH_HALVES = {np.dtype(np.float16): torch.float16, np.dtype(ml_dtypes.bfloat16): torch.bfloat16}


def _block_shares(values: Array, held: Array, weight: HeldWeight) -> Array:
    """Shares of the bound of rounding to nearest, [rows, blocks]."""
    form = weight.quantization
    assert form is not None
    rows, width = values.shape
    if form.factors is not None:  # the codes are of the weight times the divisors
        values, held = values / form.factors, held / form.factors
    padding = ((0, 0), (0, -width % form.block))
    w, h = (np.pad(x, padding).reshape(rows, -1, form.block) for x in (values, held))
    return rounded_shares(w, h, 1 << (form.bits - 1), form.top, weight.dtype == np.float16)
