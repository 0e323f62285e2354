"""From the tensors of a checkpoint to the parameters of the author's model, as transformers does it when it loads them.

Data flow: names → transformers' table of renamed modules; adapter → added to the weights that it names; tensors that
are several parameters, or a part of one → its table of conversions; tensors that the author's class declares needless →
`Checkpoint.ignored`. Nothing is read: every tensor reads the rows it is asked for.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    MergeModulelist,
    Split,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from truecast.checkpoint.model import Array, Checkpoint, StoredTensor
from truecast.checkpoint.stacks import rows_as, stack
from truecast.errors import InputError
from truecast.trace.adapting import with_adapter
from truecast.trace.experts import forms_of, modules_of_experts

STACKINGS = ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)])
"""What transformers does to tensors where a parameter is a stack of matrices: [experts, rows of one or two, width]."""
DECLARED = "{} declares that it does not need it"
FURTHER = "it is of a layer that predicts further tokens, behind the {} layers of the model"
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
EXPERT = re.compile(r"\.experts\.\d+\.")
LINEARS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
"""What authors call the linear layers of one expert."""
NEXT_LAYERS = "num_nextn_predict_layers"
"""How config.json calls the number of layers, behind the others, that predict further tokens."""


def checkpoint_renamer(model: PreTrainedModel, more: Iterable[str] = ()) -> Callable[[str], str]:
    """From a checkpoint's name of a tensor to the model's, by transformers' own tables of renamed modules.

    `more` are names that the model may have beside those it has.
    """
    known = {**dict.fromkeys(more, True), **model.state_dict()}
    renamings = [t for t in get_model_conversion_mapping(model) if isinstance(t, WeightRenaming)]

    def rename(name: str) -> str:
        renamed, _ = rename_source_key(name, renamings, [], model.base_model_prefix, known)
        return name if name in known else renamed

    return rename


def as_parameters(checkpoint: Checkpoint, model: PreTrainedModel) -> Checkpoint:
    """The checkpoint with a tensor for every parameter of the model that it holds, by the file's name or the model's.

    Raises:
        InputError: a part of a parameter is missing, transformers' conversion does not fit the tensors, or the
            checkpoint's adapter does not fit the model.
    """
    if not isinstance(model, PreTrainedModel):
        return checkpoint
    rename = checkpoint_renamer(model)
    ordered = {name: checkpoint.tensors[name] for name in sorted(checkpoint.tensors, key=dot_natural_key)}
    adapted = with_adapter(replace(checkpoint, tensors=ordered), model, rename, lambda c: _converted(c, model))
    ignored = dict(_needless(adapted, model, rename))
    tensors = {name: tensor for name, tensor in adapted.tensors.items() if name not in ignored}
    return replace(adapted, tensors=tensors, ignored={**adapted.ignored, **ignored})


def _needless(
    checkpoint: Checkpoint, model: PreTrainedModel, rename: Callable[[str], str]
) -> Iterator[tuple[str, str]]:
    """Tensors without a parameter that the author's class declares needless, or that only further layers have."""
    patterns = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    known, layers = model.state_dict(), checkpoint.config.get("num_hidden_layers")
    further = checkpoint.config.get(NEXT_LAYERS) or 0
    for name in checkpoint.tensors:
        target, layer = rename(name), LAYER.search(name)
        if target in known:
            continue
        if any(pattern.search(target) for pattern in patterns):
            yield name, DECLARED.format(type(model).__name__)
        elif layer is not None and isinstance(layers, int) and layers <= int(layer[1]) < layers + further:
            yield name, FURTHER.format(layers)


@dataclass
class _Group:
    """The tensors that one conversion makes one or several parameters of: names by the pattern that they match."""

    target: str
    converter: WeightConverter
    names: dict[str, list[str]] = field(default_factory=dict)


def _converted(checkpoint: Checkpoint, model: PreTrainedModel) -> Checkpoint:
    tensors = dict(checkpoint.tensors)
    latest = _Latest(model)
    for group in _groups(checkpoint, model):
        made = _made(group, checkpoint, latest)
        for name in (name for names in group.names.values() for name in names):
            tensors.pop(name)
        tensors |= made
    return replace(checkpoint, tensors=tensors)


def _groups(checkpoint: Checkpoint, model: PreTrainedModel) -> list[_Group]:
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    if not converters and any(EXPERT.search(name) for name in checkpoint.tensors):
        converters = list(_experts_one_by_one(model))
    owner = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    known = model.state_dict()
    groups: dict[str, _Group] = {}
    for name in checkpoint.tensors if converters else ():
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        fits = name in known and tuple(known[name].shape) == checkpoint.tensors[name].shape
        if pattern is not None and target in known and not fits:
            group = groups.setdefault(target, _Group(target, owner[pattern]))
            group.names.setdefault(pattern, []).append(name)
    return list(groups.values())


def _experts_one_by_one(model: PreTrainedModel) -> Iterator[WeightConverter]:
    """How quantizers store experts that the author has in one parameter, where transformers has no conversion.

    They split it into the linear layers of each expert, by the names that most authors have for them. It is certain
    what these are where the experts hold [out, in] and all rows of the gate come first.
    """
    modules = modules_of_experts(model)
    if not modules:
        return
    for form in set(forms_of(model).values()):
        if form.transposed or form.gate is None or form.gate.activation != "swiglu" or form.gate.interleaved:
            continue
        for gate, up, down in LINEARS:
            sources = [f".experts.*.{name}.weight" for name in (gate, up)]
            yield WeightConverter(sources, f".experts.{form.up}", [MergeModulelist(0), Concatenate(1)])
            yield WeightConverter(f".experts.*.{down}.weight", f".experts.{form.down}", [MergeModulelist(0)])


def _made(group: _Group, checkpoint: Checkpoint, latest: _Latest) -> dict[str, StoredTensor]:
    """The parameters of a group, by name."""
    kinds = [(type(operation), getattr(operation, "dim", None)) for operation in group.converter.operations]
    if kinds in STACKINGS:
        members = [[checkpoint.tensors[name] for name in row] for row in _rows(group, checkpoint)]
        return {group.target: stack(group.target, members)}
    tensors = {p: [checkpoint.tensors[name] for name in names] for p, names in group.names.items()}
    try:
        shapes = latest.shapes(group, tensors)
    except Exception as error:  # transformers' operations raise of many kinds
        said = ", ".join(type(operation).__name__ for operation in group.converter.operations)
        raise InputError(
            f"{group.target} is made by {said} of {', '.join(_names(group))}, which does not fit the tensors of "
            f"{checkpoint.path} ({error}); load and save the model with transformers."
        ) from error
    if kinds in ([(Chunk, 0)], [(Split, 0)]):
        return _pieces(tensors[next(iter(tensors))][0], shapes)
    return {name: _computed(name, shape, group, tensors, latest) for name, shape in shapes.items()}


def _names(group: _Group) -> list[str]:
    return [name for names in group.names.values() for name in names]


def _rows(group: _Group, checkpoint: Checkpoint) -> list[tuple[str, ...]]:
    """The names of a stack's matrices: one row for each expert, in the order of transformers' converter."""
    patterns = group.converter.source_patterns
    lists = [group.names.get(pattern, []) for pattern in patterns]
    if len({len(names) for names in lists}) > 1:
        counted = ", ".join(f"{len(names)} of {pattern}" for pattern, names in zip(patterns, lists, strict=True))
        raise InputError(
            f"{checkpoint.path} has {counted} for {group.target}; "
            "the checkpoint is incomplete, download or save it again."
        )
    return list(zip(*lists, strict=True))


def _pieces(whole: StoredTensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, StoredTensor]:
    """Runs of rows of one tensor, which stay encoded as it is."""
    pieces, start = {}, 0
    for name, shape in shapes.items():
        pieces[name] = rows_as(whole, name, start, start + shape[0])
        start += shape[0]
    return pieces


@dataclass
class _Latest:
    """Runs transformers' own operations, and keeps what they made of the latest group: its rows are read in turn."""

    model: PreTrainedModel
    group: _Group | None = None
    made: Mapping[str, Array] = field(default_factory=dict)

    def shapes(self, group: _Group, tensors: Mapping[str, list[StoredTensor]]) -> dict[str, tuple[int, ...]]:
        """What a group's parameters are called, with their shapes; nothing is read."""
        empty = {p: [torch.empty(t.shape, device="meta") for t in members] for p, members in tensors.items()}
        return {name: tuple(tensor.shape) for name, tensor in self._run(group, empty).items()}

    def array(self, name: str, group: _Group, tensors: Mapping[str, list[StoredTensor]]) -> Array:
        """A parameter of a group, float32."""
        if self.group is not group:
            values = {p: [torch.from_numpy(_floats(t)) for t in members] for p, members in tensors.items()}
            self.made = {name: tensor.numpy() for name, tensor in self._run(group, values).items()}
            self.group = group
        return self.made[name]

    def _run(self, group: _Group, values: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
        converter: Any = copy.deepcopy(group.converter)
        for pattern, tensors in values.items():
            for name, tensor in zip(group.names[pattern], tensors, strict=True):
                converter.add_tensor(group.target, name, pattern, lambda tensor=tensor: tensor)
        made = converter.convert(group.target, model=self.model, config=self.model.config)
        return {name: one[0] if isinstance(one, list) else one for name, one in made.items()}


def _floats(tensor: StoredTensor) -> Array:
    return np.array(tensor.read(), np.float32)


def _computed(
    name: str, shape: tuple[int, ...], group: _Group, tensors: Mapping[str, list[StoredTensor]], latest: _Latest
) -> StoredTensor:
    """A parameter that transformers' operations compute when it is read: they hold the tensors of its group at once."""
    members = [tensor for of_pattern in tensors.values() for tensor in of_pattern]

    def read(start: int, stop: int) -> Array:
        return latest.array(name, group, tensors)[start:stop]

    return replace(
        members[0],
        name=name,
        shape=shape,
        dtype=np.dtype(np.float32),
        stored_as=" + ".join(dict.fromkeys(tensor.stored_as for tensor in members)),
        reader=read,
        verbatim=False,
        encoding=None,
        parts=tuple(part for tensor in members for part in (tensor.parts or (tensor,))),
    )
