"""The points at which a module is proven: every free axis at sizes on both sides of whatever the graph may hold fixed.

| group | sizes |
|---|---|
| one axis | each free axis at its least, 1, 2, 3, 9, the trace's size, one beside it, 64; others usual |
| greatest | each free axis at its greatest, others at their least |
| corner | all axes at their least, and at 2 |
| mask | rows padded on the right, on the left, with holes; with paddings longer than a window where there is one |

Left out, and said so in the notes: sizes that the module itself does not take, and those at which it would make a
tensor too large (`HEAVIEST`): the nearest below is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from truecast.trace.author import AuthorModule, Axis, InputSpec

SEED = 20_241_121
USUAL = 5
"""Size of an axis while another one varies."""
MANY = 9
"""Rows beyond those that kernels take together: ONNX Runtime and torch have paths of their own up to eight."""
LARGE = 64
FAR = 2048
"""Greatest size, in elements, of an axis without an end."""
HEAVIEST, CONVENIENT = 1 << 29, 1 << 27
"""Bytes of the largest tensor that a module makes at a point: at most, and for points that others could stand for.
Torch in float32 and float64 and the runtime hold some six of that size at a time."""
LIGHT = 1 << 12
"""Elements of all inputs up to which no tensor is large."""
MASKS = ("right padding", "left padding", "holes")
WINDOWS = ("window", "local_attention")
"""What the names of settings contain that say how far attention reaches."""
MASKED_ROWS = 3
"""Rows of a point with long paddings: none, a third, and two thirds of the last one."""


@dataclass(frozen=True)
class ModulePoint:
    """One call: a name for messages, and a tensor for every input in order."""

    name: str
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Grid:
    """All points, the same at every call, and what is to be said of those that are not there."""

    points: tuple[ModulePoint, ...]
    notes: tuple[str, ...]


def module_grid(author: AuthorModule) -> Grid:
    """The grid of a module."""
    points: dict[tuple[str, tuple[int, ...]], ModulePoint] = {}
    notes: dict[str, str] = {}
    for kind, sizes in _wanted(author, notes):
        named = [f"{axis} {size}" for axis, size in sizes.items()]
        name = ", ".join(([kind] if kind else []) + named) or "the example's sizes"
        mask = _mask(kind) if kind else _ones
        points.setdefault((kind, tuple(sizes.values())), ModulePoint(name, _tensors(author, sizes, mask)))
    return Grid(tuple(points.values()), tuple(notes.values()))


Sizes = dict[str, int]


def _wanted(author: AuthorModule, notes: dict[str, str]) -> Iterator[tuple[str, Sizes]]:
    """The kind of mask ("" for none) and the sizes of every point; some come more than once."""
    axes, examples = author.axes, _example_sizes(author)
    usual = {name: _clip(axis, examples[name] if axis.low > 1 else USUAL) for name, axis in axes.items()}
    least = {name: axis.low for name, axis in axes.items()}
    for name, axis in axes.items():
        for size in _sizes(axis, examples[name]):
            room = HEAVIEST if size <= MANY else CONVENIENT
            yield "", _fitting(author, usual | {name: size}, name, room, {})
        if (greatest := _greatest(author, axis)) is not None:
            yield "", _fitting(author, least | {name: greatest}, name, HEAVIEST, notes)
    for size in (1, 2):
        yield "", {name: _clip(axis, size) for name, axis in axes.items()}
    if not axes:
        yield "", {}
    for sizes in (usual, *_longer_than_windows(author, usual)) if any(spec.is_mask for spec in author.inputs) else ():
        for kind in MASKS:
            yield kind, sizes


def _longer_than_windows(author: AuthorModule, usual: Mapping[str, int]) -> Iterator[Sizes]:
    """Sizes at which two thirds of a row are more than the widest window."""
    axes = author.axes
    rows, length = (
        next((spec.axes[i].name for spec in author.inputs if spec.is_mask and i in spec.axes), "") for i in (0, 1)
    )
    width = max(_windows(author.config or {}), default=0)
    if not width or rows not in axes or length not in axes:
        return
    sizes = {**usual, rows: _clip(axes[rows], MASKED_ROWS), length: _clip(axes[length], 3 * width // 2 + MANY)}
    yield _fitting(author, sizes, length, HEAVIEST, {})


def _windows(config: Mapping[str, Any]) -> Iterator[int]:
    """Every width of a window in a configuration, parts of it included."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _windows(value)
        elif any(word in str(key) for word in WINDOWS):  # the keys of id2label are numbers
            values = value if isinstance(value, list) else [value]
            yield from (one for one in values if isinstance(one, int) and not isinstance(one, bool))


def _fitting(author: AuthorModule, sizes: Sizes, name: str, room: int, notes: dict[str, str]) -> Sizes:
    """The same sizes, that of one axis made smaller until no tensor is larger than `room` bytes."""
    asked, axis, fitted = sizes[name], author.axes[name], dict(sizes)
    while (heavy := largest_tensor(author, fitted)) > room and fitted[name] > axis.low:
        notes.setdefault(
            name, f"{name} was not run at {asked}: the module would make a tensor of {heavy / 1e9:.1f} GB."
        )
        fitted[name] = max(axis.low, 3 * fitted[name] // 4)
    return fitted


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the bytes of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        self.bytes = max([self.bytes, *(tensor.numel() * tensor.element_size() for tensor in tensors)])
        return made


def largest_tensor(author: AuthorModule, sizes: Mapping[str, int]) -> int:
    """Bytes of the largest tensor that the module makes at these sizes, by shapes alone; 0 where they do not say."""
    shapes = [_shape(spec, sizes) for spec in author.inputs]
    if sum(torch.Size(shape).numel() for shape in shapes) <= LIGHT:
        return 0
    largest = _Largest()
    mode = author.mode or FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode, torch.no_grad():
            kinds = [spec.example.dtype for spec in author.inputs]
            tensors = [torch.ones(shape, dtype=kind) for shape, kind in zip(shapes, kinds, strict=True)]
            with largest:
                author(tensors)
    except Exception:  # the author's code may look at values, which there are none of
        torch.compiler.reset()  # what torch.cond compiled of fake tensors fails for true ones, too
    return largest.bytes


def _example_sizes(author: AuthorModule) -> dict[str, int]:
    return {axis.name: spec.example.shape[i] for spec in author.inputs for i, axis in spec.axes.items()}


def _clip(axis: Axis, size: int) -> int:
    return max(axis.low, size if axis.high is None else min(size, axis.high))


def _sizes(axis: Axis, example: int) -> list[int]:
    """Sizes up to some multiples of the example's."""
    wanted = [1, 2, 3, MANY, example, example + 1, LARGE]
    if axis.low > LARGE:  # sizes far from 1: a signal
        wanted = [axis.low, axis.low + 1, example, 2 * example]
    return sorted({_clip(axis, size) for size in wanted})


def _greatest(author: AuthorModule, axis: Axis) -> int | None:
    """The greatest size of an axis; without an end, that of a long text, and none for rows and samples of a signal."""
    if axis.high is not None:
        return axis.high
    places = {i for spec in author.inputs for i, one in spec.axes.items() if one.name == axis.name}
    return None if places == {0} or axis.low > LARGE else FAR


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


def _shape(spec: InputSpec, sizes: Mapping[str, int]) -> list[int]:
    return [spec.axes[i].size(sizes) if i in spec.axes else int(n) for i, n in enumerate(spec.example.shape)]


def _tensor(spec: InputSpec, sizes: Mapping[str, int], mask: MaskOf, generator: torch.Generator) -> Tensor:
    example = spec.example
    shape = _shape(spec, sizes)
    if spec.is_mask and len(shape) == 2 and not (spec.is_padding and mask is _ones):  # then rows of padding alone, too
        made = mask(*shape).to(example.dtype)
        return ~made if spec.is_padding else made
    if example.dtype is torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if not example.is_floating_point():
        values = torch.randint(0, spec.high or 2, shape, generator=generator).to(example.dtype)
    else:
        values = _normal(example, shape, generator)
    return values.reshape(*shape[:-1], 2, 2).sort(-2).values.reshape(shape) if spec.boxes else values


def _normal(example: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Numbers of the mean and spread of the example; of spread 1 where it has none, or no values."""
    values = torch.randn(shape, generator=generator)
    if isinstance(example, FakeTensor):
        return values.to(example.dtype)
    spread = example.float().std() if example.numel() > 1 else torch.tensor(0.0)
    if not bool(spread > 0):
        return values.to(example.dtype)
    return (values * spread + example.float().mean()).to(example.dtype)
