"""The checkpoint's adapter, added to the weights that it names.

Data flow: the adapter's changes by the names of the author's modules → the tensors of the checkpoint that are these
parameters; changes of a parameter that is made of several tensors wait until it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from truecast.checkpoint.adapters import Adapter, Change, LowRank, Whole
from truecast.checkpoint.model import Checkpoint
from truecast.errors import InputError

Renamer = Callable[[str], str]
Changes = Mapping[str, tuple[Change, ...]]


def with_adapter(
    checkpoint: Checkpoint, model: PreTrainedModel, rename: Renamer, convert: Callable[[Checkpoint], Checkpoint]
) -> Checkpoint:
    """The converted checkpoint, its adapter added to the tensors before the conversion, or else to what they became.

    Raises:
        InputError: the adapter has tensors that no parameter of the model takes, or that do not fit one.
    """
    adapter = checkpoint.adapter
    if adapter is None:
        return convert(checkpoint)
    changes = {rename(name): steps for name, steps in adapter.changes.items()}
    _require_untied(adapter, changes, model)
    changed, waiting = _applied(checkpoint, changes, model, rename, ())
    finished, left = _applied(convert(changed), waiting, model, rename, model.state_dict())
    if left:
        raise InputError(
            f"The adapter in {adapter.path} has tensors for {next(iter(left))}, which this {type(model).__name__} has "
            f"not ({len(left)} such parameters); it was made for another model."
        )
    return replace(finished, notices=(*finished.notices, _notice(checkpoint, adapter, finished)))


def _applied(
    checkpoint: Checkpoint, changes: Changes, model: PreTrainedModel, rename: Renamer, new: Collection[str]
) -> tuple[Checkpoint, Changes]:
    """The checkpoint with the changes of the tensors that it has, and the other ones.

    `new` are parameters that the adapter may bring where the checkpoint has none: the head of its own task.
    """
    tensors, left = dict(checkpoint.tensors), {}
    stored = {rename(name): name for name in tensors}
    for parameter, steps in changes.items():
        first = steps[0]
        if parameter in stored:
            tensor = tensors[stored[parameter]]
        elif parameter in new and isinstance(first, Whole):
            tensor = replace(first.tensor, name=parameter)
        else:
            left[parameter] = steps
            continue
        for step in steps:
            tensor = step.onto(tensor, _is_transposed(model, parameter))
        tensors[tensor.name] = tensor
    return replace(checkpoint, tensors=tensors), left


def _is_transposed(model: PreTrainedModel, parameter: str) -> bool:
    """Whether a parameter is held as [in, out]: that of transformers' Conv1D."""
    owner: Any = dict(model.named_modules()).get(parameter.rpartition(".")[0])
    return not isinstance(owner, nn.Linear | nn.Embedding) and hasattr(owner, "nf")


def _require_untied(adapter: Adapter, changes: Changes, model: PreTrainedModel) -> None:
    """A tied weight is two parameters for peft, of which the adapter changes one; here they stay one."""
    ties: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for parameter in {*ties, *ties.values()} & set(changes):
        if any(isinstance(step, LowRank) or (isinstance(step, Whole) and step.copied) for step in changes[parameter]):
            raise InputError(
                f"The adapter in {adapter.path} changes {parameter}, which config.json ties to another weight that it "
                "leaves as it is; merge it with peft, and save the model with tie_word_embeddings false."
            )


def _notice(base: Checkpoint, adapter: Adapter, finished: Checkpoint) -> str:
    changed = [n for n, tensor in finished.tensors.items() if tensor is not base.tensors.get(n)]
    coded = sum(base.tensors[name].is_quantized for name in changed if name in base.tensors)
    beside = f"; to cast the base alone, move {adapter.files[0].name} elsewhere" if adapter.path == base.path else ""
    floats = f" {coded} of them were quantized, and are floats with it." if coded else ""
    count = len(adapter.changes)
    return f"The adapter in {adapter.path} is added to {count} parameter{'s' * (count != 1)}{beside}.{floats}"
