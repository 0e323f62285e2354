"""What happens to a graph of 16 bits before it is proven: its islands, by rule and by measurement.

Data flow: a packed graph → nodes without a kernel become islands (`by_rule`) → weights are written → the graph runs in
float32 on examples → nodes beyond the safe share become islands, too (`by_reach`) → what the manifest says of them.

| examples | from |
|---|---|
| those of a calibration file | the user |
| truecast's own text | where the model takes text |
| the author's example inputs | a module that came with some |
| random numbers of mean 0 and spread 1 | pictures and sound, as their processors normalise them |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensor

from truecast.artifact import GraphInfo, Manifest, TensorInfo
from truecast.calibration.feeds import Feed, own_feeds, read_feeds
from truecast.halves.islands import float32_ends, keep_float32
from truecast.halves.kernels import without_kernel
from truecast.halves.model import Half
from truecast.halves.reach import SAFE_SHARE, beyond, measured
from truecast.trace.author import InputSpec

SEED = 20_251_122
MEASURED = "islands_measured_on"
"""What the manifest's settings call the origin of the examples."""

Progress = Callable[[str, int, int], None]


def by_rule(model: ir.Model, half: Half) -> dict[str, str]:
    """Makes islands of the nodes that have no kernel; inputs and outputs become float32. Nothing where all load."""
    if not half.providers:
        return {}
    float32_ends(model, half)
    found = without_kernel(model, half)
    keep_float32(model, half, found)
    return found


def by_reach(
    model: ir.Model, half: Half, folder: Path, file: str, feeds: Sequence[Feed], progress: Progress
) -> dict[str, str]:
    """Makes islands of the nodes of a written graph that go beyond the safe share; `model` is the same graph."""
    reach = measured(folder, file, half, feeds, lambda done: progress("measure", done, len(feeds)))
    found, wide = beyond(model, half, reach)
    keep_float32(model, half, found, wide)
    return found


def examples(
    folder: Path, info: GraphInfo, inputs: Sequence[InputSpec], calibration: Path | None
) -> tuple[list[Feed], str]:
    """Feeds with floats in float32, and where they are from; raises InputError for a file that cannot be used."""
    wide = info.model_copy(update={"inputs": [_wide(tensor) for tensor in info.inputs]})
    if calibration is not None:
        return read_feeds(calibration, folder, wide), "the calibration file"
    if feeds := own_feeds(folder, wide):
        return feeds, "truecast's own text"
    if any(isinstance(spec.example, FakeTensor) for spec in inputs):
        return [_random(inputs)], "random numbers; --calibration FILE gives better ones"
    return [{spec.name: spec.example.numpy() for spec in inputs}], "the example inputs"


def _wide(tensor: TensorInfo) -> TensorInfo:
    return tensor.model_copy(update={"dtype": "float32"}) if "float" in tensor.dtype else tensor


def _random(inputs: Sequence[InputSpec]) -> Feed:
    generator = torch.Generator().manual_seed(SEED)
    feed = {}
    for spec in inputs:
        shape, dtype = tuple(int(n) for n in spec.example.shape), spec.example.dtype
        if spec.is_mask:
            values = torch.ones(shape, dtype=dtype)
        elif dtype.is_floating_point:
            values = torch.randn(shape, generator=generator)
        else:
            values = torch.randint(0, spec.high or 2, shape, generator=generator).to(dtype)
        feed[spec.name] = values.numpy()
    return feed


def with_islands(
    manifest: Manifest, half: Half, rule: Mapping[str, str], reach: Mapping[str, str], origin: str
) -> Manifest:
    """Notes the islands and where the graph runs."""
    graph = manifest.graph.model_copy(update={"islands": {**rule, **reach}, "providers": list(half.providers)})
    notices = [*manifest.notices, *_sentences(half, rule, reach)]
    settings = manifest.settings | ({MEASURED: origin} if origin else {})
    return manifest.model_copy(update={"graph": graph, "notices": notices, "settings": settings})


def _sentences(half: Half, rule: Mapping[str, str], reach: Mapping[str, str]) -> list[str]:
    said = []
    if half.providers:
        said.append(
            f"The graph computes in {half.word}: it runs on {' and '.join(half.providers)}, and does not load on cpu, "
            "where ONNX Runtime has no such kernels."
        )
    if rule:
        name, reason = next(iter(rule.items()))
        said.append(f"{_nodes(rule)} in float32, having no kernel: {name} ({reason}){_more(rule)}.")
    if reach:
        name, reason = max(reach.items(), key=lambda item: float(item[1].rpartition(" ")[2]))
        said.append(
            f"{_nodes(reach)} in float32, since values go beyond {SAFE_SHARE:.3g} of {half.word}'s {half.largest:.0f}: "
            f"{name} {reason}{_more(reach)}."
        )
    return said


def _nodes(found: Mapping[str, str]) -> str:
    return "1 node computes" if len(found) == 1 else f"{len(found)} nodes compute"


def _more(found: Mapping[str, str]) -> str:
    return f" and {len(found) - 1} more" if len(found) > 1 else ""
