"""The exporter's reader against the source's own loader: every weight, and every key that was missing or left over.

What the exporter misreads it would bind and prove with equal confidence. So each of its tensors is compared, value by
value, with what transformers loaded, or what the definition of its format decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from truecast.artifact import Check, Manifest
from truecast.checkpoint.model import Checkpoint, StoredTensor
from truecast.proof.held import HeldWeight, row_chunks
from truecast.proof.operators import Array
from truecast.proof.reference import Reference
from truecast.proof.source.definitions import decoded
from truecast.proof.source.llama_cpp import fact_faults
from truecast.proof.source.loading import OWN_CODE
from truecast.proof.tally import counted
from truecast.weights.cache import CACHE_SCALES
from truecast.weights.sources import Sources, finite_rows

TIER = "static"
VALUES, KEYS = "weights as the source's own loader reads them", "keys of the source's own loader"
FACTS = "positions, norms and scales as llama.cpp reads them"

SUMS = 2.0**-18
"""Distance of an adapted weight, in parts of the largest: products of factors of some hundred ranks are summed up in
float32 on one side, each with a rounding of 2^-24, and in float64 on the other."""

Progress = Callable[[int, int], None]


def loading_checks(
    reference: Reference,
    manifest: Manifest,
    weights: Mapping[str, HeldWeight],
    floats: Sources,
    progress: Progress,
) -> list[Check]:
    """Checks of a reference whose weights are still those that were loaded; none where no loader loaded any.

    `floats` finds the tensors that were loaded, in the exporter's reader.
    """
    loaded = reference.loaded
    if loaded is None or not loaded.loader:
        return []
    faults, count = [], 0
    for index, (name, parameter) in enumerate(reference.parameters.items()):
        if name not in loaded.missing and floats.is_there(name):
            values = parameter.detach().float().numpy().reshape(parameter.shape or (1,))
            faults += list(_unlike(name, floats[name], values, SUMS if loaded.is_adapted else 0.0))
            count += 1
        progress(index + 1, len(reference.parameters))
    detail = f"{count} weights, loaded by {loaded.loader}"
    if loaded.made is not None:
        faults += definition_faults(loaded.made)
        detail += f", and those that were made of them by {OWN_CODE}"
    checks = [
        counted(TIER, VALUES, faults, "faults", detail),
        counted(TIER, KEYS, list(_key_faults(reference, manifest, weights)), "faults"),
    ]
    if loaded.file is not None:
        checks.append(counted(TIER, FACTS, list(fact_faults(reference.model, loaded.file)), "facts"))
    return checks


def definition_faults(checkpoint: Checkpoint) -> list[str]:
    """The tensors of a folder that the exporter's reader and the definitions of the formats decode to unlike values."""
    known = decoded(checkpoint.path)
    faults = [f"{name} is no tensor by {OWN_CODE}" for name in checkpoint.tensors if name not in known]
    for name, tensor in checkpoint.tensors.items():
        if name in known:
            faults += list(_unlike(name, tensor, known[name][...].float().numpy()))
    return faults


def _unlike(name: str, stored: StoredTensor, values: Array, room: float = 0.0) -> Iterator[str]:
    """A sentence where `values` are not those of the exporter's reader, up to `room` in parts of the largest."""
    if values.shape != (stored.shape or (1,)):
        yield f"{name} has the shape {list(values.shape)}, and is read as {list(stored.shape)}"
        return
    limit = room * float(np.abs(values).max(initial=0)) if room else 0.0
    for start, stop in row_chunks(stored.shape):
        read, loaded = finite_rows(stored, start, stop), values[start:stop]
        unlike = np.abs(read.reshape(len(loaded), -1) - loaded.reshape(len(loaded), -1)) > limit
        if unlike.any():
            yield f"{name} is read with other values, the first in row {start + int(unlike.any(1).argmax())}"
            return


def _key_faults(reference: Reference, manifest: Manifest, weights: Mapping[str, HeldWeight]) -> Iterator[str]:
    loaded = reference.loaded
    assert loaded is not None
    for name in sorted(loaded.missing):
        if reference.held(name, weights) is not None:
            yield f"{name} is held, but transformers finds no tensor for it"
    scales = [name for info in manifest.weights if info.packing == CACHE_SCALES for name in info.sources]
    explained = [*manifest.ignored_tensors, *map(reference.sources.rename, manifest.ignored_tensors), *scales]
    for name in sorted(loaded.unexpected):
        if not any(_same_key(name, other) for other in explained):
            yield f"{name} has no place in the model of transformers, but is not among what was ignored"


def _same_key(name: str, other: str) -> bool:
    """Whether two keys are of one tensor: with or without the prefix of a base model."""
    return name == other or name.endswith(f".{other}") or other.endswith(f".{name}")
