"""The points at which a module is proven: every free axis at sizes on both sides of whatever the graph may hold fixed.

| group | sizes |
|---|---|
| one axis | each free axis at its least, 1, 2, 3, the trace's size, one beside it, 64, its greatest; others usual |
| corner | all axes at their least, and at 2 |
| mask | rows padded on the right, on the left, with holes |

Left out, and said so in the notes: sizes that the module itself does not take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from truecast.trace.author import AuthorModule, Axis, InputSpec

SEED = 20_241_121
USUAL = 5
"""Size of an axis while another one varies."""
LARGE = 64
DEAREST = 1 << 12
"""Largest size of an axis without an end, or with one far away, in elements of the axis."""
MASKS = ("right padding", "left padding", "holes")


@dataclass(frozen=True)
class ModulePoint:
    """One call: a name for messages, and a tensor for every input in order."""

    name: str
    tensors: tuple[Tensor, ...]


def module_points(author: AuthorModule) -> Iterator[ModulePoint]:
    """All points of the grid, the same at every call."""
    axes, examples = author.axes, _example_sizes(author)
    usual = {name: _clip(axis, examples[name] if axis.low > 1 else USUAL) for name, axis in axes.items()}
    seen: set[tuple[int, ...]] = set()
    for name, axis in axes.items():
        for size in _sizes(axis, examples[name]):
            yield from _once(author, usual | {name: size}, seen)
    for size in (1, 2):
        yield from _once(author, {name: _clip(axis, size) for name, axis in axes.items()}, seen)
    if not axes:
        yield from _once(author, {}, seen)
    if any(spec.is_mask for spec in author.inputs):
        for kind in MASKS:
            yield ModulePoint(kind, _tensors(author, usual, _mask(kind)))


def _once(author: AuthorModule, sizes: Mapping[str, int], seen: set[tuple[int, ...]]) -> Iterator[ModulePoint]:
    key = tuple(sizes.values())
    if key not in seen or not sizes:
        seen.add(key)
        name = ", ".join(f"{axis} {size}" for axis, size in sizes.items()) or "the example's sizes"
        yield ModulePoint(name, _tensors(author, sizes, _ones))


def _example_sizes(author: AuthorModule) -> dict[str, int]:
    return {axis.name: spec.example.shape[i] for spec in author.inputs for i, axis in spec.axes.items()}


def _clip(axis: Axis, size: int) -> int:
    return max(axis.low, size if axis.high is None else min(size, axis.high))


def _sizes(axis: Axis, example: int) -> list[int]:
    wanted = [1, 2, 3, example, example + 1, LARGE]
    if axis.low > LARGE:  # sizes far from 1: a signal
        wanted = [axis.low, axis.low + 1, example, 2 * example]
    if axis.high is not None and axis.high <= DEAREST:
        wanted.append(axis.high)
    return sorted({_clip(axis, size) for size in wanted})


MaskOf = Callable[[int, int], Tensor]


def _ones(rows: int, length: int) -> Tensor:
    return torch.ones(rows, length, dtype=torch.long)


def _mask(kind: str) -> MaskOf:
    """Rows of which at least one position counts; the first one is full."""

    def make(rows: int, length: int) -> Tensor:
        mask = torch.ones(rows, length, dtype=torch.long)
        for row in range(1, rows):
            gone = max(0, min(length - 1, (row * length) // rows))
            if kind == "right padding":
                mask[row, length - gone :] = 0
            elif kind == "left padding":
                mask[row, :gone] = 0
            else:
                mask[row, 1::2] = 0
        return mask

    return make


def _tensors(author: AuthorModule, sizes: Mapping[str, int], mask: MaskOf) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(SEED)
    return tuple(_tensor(spec, sizes, mask, generator) for spec in author.inputs)


def _tensor(spec: InputSpec, sizes: Mapping[str, int], mask: MaskOf, generator: torch.Generator) -> Tensor:
    example = spec.example
    shape = [spec.axes[i].size(sizes) if i in spec.axes else int(n) for i, n in enumerate(example.shape)]
    if spec.is_mask and len(shape) == 2:
        return mask(*shape).to(example.dtype)
    if example.dtype is torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if not example.is_floating_point():
        return torch.randint(0, spec.high or 2, shape, generator=generator).to(example.dtype)
    return _normal(example, shape, generator)


def _normal(example: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Numbers of the mean and spread of the example; of spread 1 where it has none, or no values."""
    values = torch.randn(shape, generator=generator)
    if isinstance(example, FakeTensor):
        return values.to(example.dtype)
    spread = example.float().std() if example.numel() > 1 else torch.tensor(0.0)
    if not bool(spread > 0):
        return values.to(example.dtype)
    return (values * spread + example.float().mean()).to(example.dtype)
