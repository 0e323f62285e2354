"""The author's module and how it is called: what is cast when it is no decoder.

Data flow: a Hugging Face folder with a task, a factory on the import path, or a module in memory → `AuthorModule`: the
module in evaluation mode, and its inputs in the order of forward(), each with an example and its free axes.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from truecast.errors import InputError
from truecast.trace.explaining import NOT_YET, explained

UNBOUNDED = 1 << 31
"""A bound of this size or more is none."""
BATCH = "batch_size"
MODULE = "module"
"""The task of a module that is none of Hugging Face's."""
SENSES = ("input_ids", "pixel_values", "input_features", "input_values")
"""Inputs of what reads, sees and hears, as transformers names them."""
Dynamic = Mapping[str, Mapping[int, str]]
"""Free axes asked for: input → axis number → name, or name with sizes (`Axis.parse`)."""


RELATED = re.compile(r"(?:(?P<factor>[1-9]\d*)\*)?(?P<of>[A-Za-z_]\w*)(?P<plus>[+-]\d+)?")
"""An axis that follows from another: 2*length, length+1, 2*length-1."""


@dataclass(frozen=True)
class Axis:
    """A free axis: its name in the graph, and the sizes it may have, `low` to `high` (None: no end).

    One that follows from another axis has its name in `of`, and always the size `factor` times that one's `plus` more;
    it is called what it is, "2*length+1".
    """

    name: str
    low: int = 1
    high: int | None = None
    of: str = ""
    factor: int = 1
    plus: int = 0

    @classmethod
    def parse(cls, text: str) -> Axis:
        """An axis from "name", "name=low..high" or "2*name+1"; raises InputError for anything else."""
        related = RELATED.fullmatch(text)
        if related is not None and not text.isidentifier():
            return cls.following(related["of"], int(related["factor"] or 1), int(related["plus"] or 0))
        name, given, bounds = text.partition("=")
        low, dots, high = bounds.partition("..")
        if not name.isidentifier() or (given and not (dots and low.isdigit() and (high.isdigit() or not high))):
            raise InputError(f"{text!r} is no axis; write a name, or a name with its sizes, as sequence_length=1..512.")
        axis = cls(name, int(low or 1), int(high) if high else None)
        if axis.low < 1 or (axis.high is not None and axis.high < axis.low):
            raise InputError(f"The axis {text!r} has no size; write the smallest and the largest, as {name}=1..512.")
        return axis

    @classmethod
    def following(cls, of: str, factor: int, plus: int) -> Axis:
        """The axis of `factor` times the size of another, and `plus` more."""
        times, more = f"{factor}*" if factor != 1 else "", f"{plus:+d}" if plus else ""
        return cls(f"{times}{of}{more}", of=of, factor=factor, plus=plus)

    def size(self, sizes: Mapping[str, int]) -> int:
        """Its size, where the axes that follow from none have `sizes`."""
        return self.factor * sizes[self.of] + self.plus if self.of else sizes[self.name]

    def __str__(self) -> str:
        """The form that `parse` reads."""
        if self.low == 1 and self.high is None:
            return self.name
        return f"{self.name}={self.low}..{'' if self.high is None else self.high}"


@dataclass(frozen=True)
class InputSpec:
    """One input: its name in forward(), an example, and the free axes of it.

    `high` bounds integers: 0 ≤ x < high. `behind` is one that forward() does not take: what follows it does. `boxes`
    says that each row of the last axis is x0, y0, x1, y1, of which no corner is before the first.
    """

    name: str
    example: Tensor
    axes: Mapping[int, Axis]
    high: int | None = None
    behind: bool = False
    boxes: bool = False

    @property
    def is_mask(self) -> bool:
        """Whether it says which positions count."""
        return self.name.endswith("attention_mask") or self.is_padding

    @property
    def is_padding(self) -> bool:
        """Whether it says, as torch's own modules have it, which positions do not count."""
        return self.name.endswith("padding_mask") and self.example.dtype is torch.bool


@dataclass(frozen=True)
class AuthorModule:
    """A module and how it is called.

    `task` is MODULE for modules that are none of Hugging Face's. `origin` says where the module came from. `config` is
    the model's configuration, if it has one. `finish` makes the outputs of what forward() gives: pooling.
    `mode` is the one of its fake tensors, None where it has its weights.
    """

    module: nn.Module
    inputs: tuple[InputSpec, ...]
    task: str = MODULE
    origin: str = "a module in memory"
    config: Mapping[str, Any] | None = None
    finish: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    mode: FakeTensorMode | None = None

    def __call__(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The outputs by name, for one tensor for each input; a graph takes no output of an input's name."""
        named = {spec.name: tensor for spec, tensor in zip(self.inputs, tensors, strict=True)}
        outputs = outputs_of(self.module(**{spec.name: named[spec.name] for spec in self.inputs if not spec.behind}))
        finished = outputs if self.finish is None else self.finish(outputs, named)
        return {f"{name}_output" if name in named else name: value for name, value in finished.items()}

    @property
    def is_pretrained(self) -> bool:
        """Whether it is transformers' model of a checkpoint: names and buffers are as transformers loads them."""
        return self.task != MODULE

    @property
    def way_out(self) -> str:
        """What to do about code that cannot be traced: a user's own can be changed."""
        return NOT_YET if self.is_pretrained else "write it in another way"

    @property
    def axes(self) -> dict[str, Axis]:
        """Every free axis by its name; those that follow from others are left out."""
        return {axis.name: axis for spec in self.inputs for axis in spec.axes.values() if not axis.of}

    def with_axes(self, dynamic: Dynamic | None) -> AuthorModule:
        """The same with other free axes, input by input; raises InputError for an input or axis that is not there."""
        if dynamic is None:
            return self
        known = {spec.name: spec for spec in self.inputs}
        for name, axes in dynamic.items():
            if name not in known:
                raise InputError(f"There is no input {name!r} to free an axis of; there are {', '.join(known)}.")
            rank = known[name].example.ndim
            if any(not 0 <= axis < rank for axis in axes):
                raise InputError(f"{name} has the axes 0 to {rank - 1}; {sorted(axes)} cannot be freed.")
        specs = tuple(
            replace(spec, axes={i: Axis.parse(text) for i, text in dynamic.get(spec.name, {}).items()})
            for spec in self.inputs
        )
        author = replace(self, inputs=specs)
        for axis in (axis for spec in specs for axis in spec.axes.values() if axis.of):
            if axis.of not in author.axes:
                raise InputError(
                    f"The axis {axis} follows from {axis.of}, but no axis is called so; free that one, too."
                )
        return author


def in_memory(module: nn.Module, example_inputs: Any, origin: str = "a module in memory") -> AuthorModule:
    """A module with examples of its inputs: one tensor, a sequence in forward()'s order, or a mapping by name.

    The first axis of every input is free when all examples have the same size there; `AuthorModule.with_axes` asks for
    others. The user's module is copied: it stays in the mode that it has.

    Raises:
        InputError: the examples are no tensors, or forward() does not take them.
    """
    examples = _named(module, example_inputs)
    author = copy.deepcopy(module).eval()
    sizes = {example.shape[0] if example.ndim else None for example in examples.values()}
    shared = len(sizes) == 1 and None not in sizes
    specs = tuple(InputSpec(n, e.detach().clone(), {0: Axis(BATCH)} if shared else {}) for n, e in examples.items())
    found = AuthorModule(author, tuple(_with_high(spec) for spec in specs), origin=origin)
    try_call(found, [spec.example for spec in found.inputs])
    return found


def _with_high(spec: InputSpec) -> InputSpec:
    """Integers stay within those of the example: beyond them an author's table may end."""
    integer = not spec.example.is_floating_point() and spec.example.dtype is not torch.bool
    return replace(spec, high=int(spec.example.max()) + 1) if integer and spec.example.numel() else spec


def _named(module: nn.Module, given: Any) -> dict[str, Tensor]:
    parameters = list(inspect.signature(module.forward).parameters)
    if isinstance(given, Tensor):
        given = (given,)
    if isinstance(given, Mapping):
        if foreign := [name for name in given if name not in parameters]:
            raise InputError(
                f"{type(module).__name__} takes no input {foreign[0]!r}; it takes {', '.join(parameters)}."
            )
        named = {name: given[name] for name in parameters if name in given}
    elif isinstance(given, Sequence):
        if len(given) > len(parameters):
            raise InputError(
                f"{type(module).__name__} takes {len(parameters)} inputs, but there are {len(given)} examples; "
                "give one for each input."
            )
        named = dict(zip(parameters, given, strict=False))
    else:
        raise InputError("example_inputs must be a tensor, a sequence of tensors, or a mapping of names to tensors.")
    wrong = next((name for name, value in named.items() if not isinstance(value, Tensor)), None)
    if wrong is not None or not named:
        raise InputError(f"The example of {wrong or 'an input'} is no tensor; give one tensor for every input.")
    return named


def try_call(author: AuthorModule, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """The module's outputs by name; raises InputError when forward() does not take the tensors."""
    names = [spec.name for spec in author.inputs]
    shapes = ", ".join(f"{n} {list(t.shape)}" for n, t in zip(names, tensors, strict=True))
    what = f"{type(author.module).__name__} does not take the inputs {shapes}"
    with explained(what, _without_these(author)), torch.no_grad():
        outputs = author(tensors)
    if not outputs:
        raise InputError(f"{type(author.module).__name__} returns no tensor; there is nothing to cast.")
    return outputs


def _without_these(author: AuthorModule) -> str:
    """What to do where forward() does not take the inputs: a model of text and pictures wants both."""
    given = [spec.name for spec in author.inputs]
    taken = inspect.signature(author.module.forward).parameters
    more = next((name for name in SENSES if name in taken and name not in given), None)
    if not author.is_pretrained:
        return "give others"
    if more is None:
        return NOT_YET
    return (
        f"it takes {more} beside {given[0]}, and models of several linked graphs cannot be cast yet; "
        "save the part for one of them as a checkpoint of its own"
    )


def outputs_of(result: Any) -> dict[str, Tensor]:
    """The tensors of a forward()'s result by name: of a mapping its keys, of a sequence `output_0`, …; nested flat."""
    if isinstance(result, Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        named: dict[str, Any] = dict(result)
    elif isinstance(result, Sequence) and hasattr(result, "_fields"):
        named = dict(zip(result._fields, result, strict=True))
    elif isinstance(result, Sequence) and not isinstance(result, str):
        named = {f"output_{index}": value for index, value in enumerate(result)}
    else:
        named = {}
    flat: dict[str, Tensor] = {}
    for name, value in named.items():
        if isinstance(value, Tensor):
            flat[name] = value
        elif isinstance(value, Mapping | Sequence) and not isinstance(value, str):
            flat |= {f"{name}.{inner.removeprefix('output_')}": tensor for inner, tensor in outputs_of(value).items()}
    return flat
