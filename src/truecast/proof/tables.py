"""Tier 1, computed tables: the rows of a rotary table against the author's own module, for every position.

A graph that rotates inside its attention operator looks cos and sin up; the grid of tier 2 reads the first few hundred
rows only, so the others are compared here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from truecast.artifact import Check, Manifest
from truecast.proof.held import array_of
from truecast.proof.operators import Array
from truecast.proof.reference import Reference
from truecast.proof.tally import Worst, check
from truecast.weights.cache import CACHE_SCALES
from truecast.weights.packing import COLUMN_ORDER

TIER = "static"
OTHERS = frozenset({COLUMN_ORDER, CACHE_SCALES})
"""Packings of computed arrays that are no tables; other checks hold them."""
TABLE_ERROR = 1e-5
"""Largest difference of two cosines of one float32 angle, from one library to another."""
HALF_ERROR = 2.0**-11
"""One rounding of a number below 1 to float16, and room for the difference of libraries."""
AT_ONCE = 1 << 14
"""Positions compared at once."""


def table_checks(model: ir.Model, manifest: Manifest, reference: Reference) -> list[Check]:
    """One check for all weights that come from no tensor of the checkpoint; none when there are none."""
    computed = [info for info in manifest.weights if not info.sources and info.packing not in OTHERS]
    names = [info.initializers[0] for info in computed]
    if not names:
        return []
    worst = Worst()
    for name in names:
        table = array_of(model, name) if name in model.graph.initializers else np.full((1, 1), np.nan)
        worst.add(_difference(table, reference), HALF_ERROR if table.dtype == np.float16 else TABLE_ERROR, name)
    detail = f"worst: {worst.where}; {len(names)} tables"
    return [check(TIER, "rotary tables are the author's", worst.value, worst.limit, "", detail)]


def _difference(table: Array, reference: Reference) -> float:
    """The distance of a table [positions, pairs] from the nearest table of the author's, over all positions."""
    worst: Array | None = None
    for start in range(0, len(table), AT_ONCE):
        stop = min(start + AT_ONCE, len(table))
        gaps = [_gap(table[start:stop], candidate) for candidate in _candidates(reference, start, stop)]
        worst = np.array(gaps) if worst is None else np.maximum(worst, gaps)
    return float(worst.min()) if worst is not None and worst.size else np.inf


def _gap(table: Array, candidate: Array) -> float:
    return float(np.abs(table - candidate).max()) if table.shape == candidate.shape else np.inf


@torch.no_grad()
def _candidates(reference: Reference, start: int, stop: int) -> Iterator[Array]:
    """cos and sin of positions [start, stop), one value per pair, of every rotary module, in both layouts."""
    reference.reset()
    positions = torch.arange(start, stop)[None]
    for module in reference.model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer_type in kinds if isinstance(kinds, dict) else [None] if isinstance(kinds, str) else []:
            yield from _tables(module, positions, layer_type)
    reference.reset()


def _tables(module: nn.Module, positions: torch.Tensor, layer_type: str | None) -> Iterator[Array]:
    options = {} if layer_type is None else {"layer_type": layer_type}
    for table in module(torch.zeros(1, 1, 1), positions, **options):
        array: Array = table[0].numpy()
        yield array
        yield array[:, : array.shape[1] // 2]
        yield array[:, 0::2]
