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
from dataclasses import dataclass
from functools import partial
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

FROM_AUTHOR = "the example inputs"

Progress = Callable[[str, int, int], None]


def by_rule(model: ir.Model, half: Half) -> dict[str, str]:
    """Makes islands of the nodes that have no kernel; inputs and outputs become float32. Nothing where all load."""
    if not half.providers:
        return {}
    float32_ends(model, half)
    found = without_kernel(model, half)
    keep_float32(model, half, found)
    return found


@dataclass(frozen=True)
class Examples:
    """Feeds with floats in float32, and where they are from; `given` by the user, who is told of what does not fit."""

    feeds: Sequence[Feed]
    origin: str
    given: bool = True


def by_reach(
    model: ir.Model, half: Half, folder: Path, file: str, examples: Examples, progress: Progress
) -> tuple[dict[str, str], str]:
    """Makes islands of the nodes of a written graph that go beyond the safe share; `model` is the same graph.

    Returns them with the reason, and what they were measured on. Raises InputError as `measured` does.
    """
    feeds = examples.feeds
    done = partial(progress, "measure")
    reach = measured(folder, file, half, feeds, lambda count: done(count, len(feeds)), lenient=not examples.given)
    found, wide = beyond(model, half, reach)
    keep_float32(model, half, found, wide)
    left = f", {reach.examples} of {len(feeds)} batches" if reach.examples < len(feeds) else ""
    return found, f"{examples.origin}{left}"


def find_examples(folder: Path, info: GraphInfo, inputs: Sequence[InputSpec], calibration: Path | None) -> Examples:
    """What to measure on; raises InputError for a calibration file that cannot be used."""
    wide = info.model_copy(update={"inputs": [_wide(tensor) for tensor in info.inputs]})
    if calibration is not None:
        return Examples(read_feeds(calibration, folder, wide), "the calibration file")
    random = any(isinstance(spec.example, FakeTensor) for spec in inputs)
    examples = _random(inputs) if random else {spec.name: spec.example.numpy() for spec in inputs}
    if feeds := own_feeds(folder, wide):  # some may be too long for it: what it takes may be less than its files say
        return Examples([*feeds, examples], "truecast's own text", given=False)
    return Examples([examples], "random numbers; --calibration FILE gives better ones" if random else FROM_AUTHOR)


def _wide(tensor: TensorInfo) -> TensorInfo:
    return tensor.model_copy(update={"dtype": "float32"}) if "float" in tensor.dtype else tensor


def _random(inputs: Sequence[InputSpec]) -> Feed:
    generator = torch.Generator().manual_seed(SEED)
    feed = {}
    for spec in inputs:
        shape, dtype = tuple(int(n) for n in spec.example.shape), spec.example.dtype
        if spec.is_mask:
            values = torch.full(shape, not spec.is_padding).to(dtype)
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
