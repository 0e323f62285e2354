"""How far the values of a graph of 16 bits reach, measured on examples with every float in float32.

Data flow: the graph and its weights → its float32 twin, unrounded → for each value of 16 bits the largest magnitude,
computed inside the graph, over all examples → nodes that read or give more than a safe share of what the float holds.

Masks are left out: an author who adds the float's least value to scores means minus infinity. What the mask is added to
is measured before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from truecast.calibration.ranges import opened
from truecast.checkpoint.model import Array
from truecast.errors import InputError
from truecast.halves.model import Half
from truecast.halves.nodes import all_nodes
from truecast.halves.twin import make_twin
from truecast.runtime.providers import LOAD_ERRORS

SAFE_SHARE = 1 / 8
"""Of the largest value of float16: three of its thirty binades stay free for inputs that the examples do not show.
Massive activations differ little from input to input (Sun et al., 2024, arXiv:2402.17762), others by several times."""
MASKING = frozenset(
    {"Add", "Cast", "Concat", "Expand", "Identity", "Max", "Min", "Mul", "Reshape", "Slice", "Sub"}
    | {"Squeeze", "Transpose", "Trilu", "Unsqueeze", "Where"}
)
"""Operators through which a mask stays one."""
ENDING = ".reach"

Progress = Callable[[int], None]
"""Called with the number of examples done."""


@dataclass(frozen=True)
class Reach:
    """The largest magnitude of every value of 16 bits, by its name, over `examples` runs."""

    values: Mapping[str, float]
    examples: int


def measured(
    folder: Path,
    file: str,
    half: Half,
    feeds: Sequence[Mapping[str, Array]],
    progress: Progress | None = None,
    lenient: bool = False,
) -> Reach:
    """Runs a graph of 16 bits in float32 and measures its values.

    Args:
        folder: holds the graph and its data file.
        file: the graph's name.
        half: what the graph computes in.
        feeds: inputs of the graph; floats in float32.
        progress: called after every feed.
        lenient: whether feeds that the graph does not take, as a text too long for it, are passed over.

    Raises InputError when the graph does not take a feed, or, `lenient`, none of them.
    """
    model = ir.load(folder / file)
    wide_inputs = [value.name or "" for value in model.graph.inputs if value.dtype is half.dtype]
    names = list(make_twin(model, half, rounded=False))
    masks = _masks(model, half)
    outer = {value.name for node in model.graph for value in node.outputs}  # those of loops show in their results
    kept = [name for name in dict.fromkeys(names) if name in outer and name not in masks]
    _add_reductions(model, kept)
    asked = [f"{name}{ENDING}" for name in kept]
    session = opened(model, folder, asked)
    taken = {value.name for value in session.get_inputs()}
    reach, count, refusal = dict.fromkeys([*kept, *wide_inputs], 0.0), 0, ""
    for number, feed in enumerate(feeds, 1):
        given = {name: array for name, array in feed.items() if name in taken}
        try:
            found = session.run(asked, given) if asked else []  # no names would be all outputs
        except (*LOAD_ERRORS, ValueError) as error:
            refusal = str(error).strip().splitlines()[0]
            if not lenient:
                break
            continue
        count += 1
        found += [np.abs(given[name]).max(initial=0.0) for name in wide_inputs]
        for name, value in zip([*kept, *wide_inputs], found, strict=True):
            reach[name] = max(reach[name], float(value) if np.isfinite(value) else float("inf"))
        if progress:
            progress(number)
    if refusal and not (lenient and count):
        raise InputError(f"The model does not take an example: {refusal}.")
    return Reach(reach, count)


def beyond(model: ir.Model, half: Half, reach: Reach) -> tuple[dict[str, str], set[str]]:
    """The nodes that read or give a value beyond the safe share, with the reason, and these values' names."""
    limit = SAFE_SHARE * half.largest
    wide = {name for name, value in reach.values.items() if value > limit}
    found = {}
    for node in all_nodes(model):
        far = [reach.values[v.name or ""] for v in (*node.inputs, *node.outputs) if v is not None and v.name in wide]
        if far:
            found[node.name or ""] = f"reaches {max(far):.3g}"
    return found, wide


def _add_reductions(model: ir.Model, names: Sequence[str]) -> None:
    wanted = set(names)
    for node in list(model.graph):
        for value in node.outputs:
            if value.name in wanted:
                size = ir.node("Abs", [value], name=f"{value.name}.abs")
                most = ir.node("ReduceMax", [size.outputs[0]], {"keepdims": 0}, name=f"{value.name}{ENDING}")
                size.outputs[0].name, most.outputs[0].name = f"{value.name}.abs", f"{value.name}{ENDING}"
                model.graph.insert_after(node, [size, most])


def _masks(model: ir.Model, half: Half) -> set[str]:
    """Values made of a constant far below zero, up to the operator that reads them as a mask."""
    masks: set[ir.Value] = set()
    for node in all_nodes(model):
        if node.op_type in MASKING and any(v in masks or _is_lowest(v, half) for v in node.inputs if v is not None):
            masks.update(node.outputs)
    return {value.name or "" for value in masks}


def _is_lowest(value: ir.Value, half: Half) -> bool:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.dtype not in (ir.DataType.FLOAT, half.dtype):
        return False
    array = tensor.numpy()
    return bool(array.size and array.astype(np.float64).min() <= -SAFE_SHARE * half.largest)
