"""The author's model without its weights: built under fake tensors from the configuration alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.initialization import no_init_weights

from truecast.checkpoint.divisions import SCALES
from truecast.checkpoint.model import Checkpoint, StoredTensor
from truecast.checkpoint.schemes import CONFIG_KEYS
from truecast.checkpoint.stacks import stack
from truecast.checkpoint.tasks import GENERATION
from truecast.errors import InputError
from truecast.trace.divided import divide_activations
from truecast.trace.explaining import CHECK_CONFIG, explained


def load_config(checkpoint: Checkpoint, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The transformers configuration of a checkpoint; InputError when transformers does not know its `model_type`."""
    raw = {key: value for key, value in checkpoint.config.items() if key not in CONFIG_KEYS}
    kind = raw.pop("model_type", None)
    if kind in CONFIG_MAPPING:
        with explained(f"config.json of {checkpoint.path} is not valid for {kind!r}", CHECK_CONFIG):
            known: PreTrainedConfig = CONFIG_MAPPING[kind].from_dict(raw)
        return known
    if "auto_map" in raw and trust_remote_code:
        with explained(f"config.json of {checkpoint.path} cannot be read by the code that comes with it", CHECK_CONFIG):
            foreign: PreTrainedConfig = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=True)
        return foreign
    if "auto_map" in raw:
        raise InputError(
            f"{checkpoint.path} brings its own code for model type {kind!r}; pass --trust-remote-code if you trust it."
        )
    raise InputError(
        f"The model type {kind!r} in {checkpoint.path} is unknown to this version of transformers; update transformers."
    )


def build_decoder(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    scales: Mapping[str, StoredTensor] | None = None,
) -> PreTrainedModel:
    """The causal language model of `config` in evaluation mode; call it under fake tensors to build it without weights.

    `scales` are what its checkpoint divides activations by (see `divided`).

    Raises InputError when transformers has no causal language model for this configuration, or no place for `scales`.
    """
    model = built(
        AutoModelForCausalLM,
        config,
        GENERATION,
        dtype=dtype,
        attn_implementation="eager",
        experts_implementation="eager",
        trust_remote_code=trust_remote_code,
    )
    with_divisions(model, scales or {})
    return model


def built(auto: Any, config: PreTrainedConfig, task: str, **options: Any) -> PreTrainedModel:
    """The model that one of transformers' auto classes has for `config`, in evaluation mode (`without_data`).

    Raises InputError where it has none, or the author's code does not take the configuration.
    """
    if type(config) not in auto._model_mapping and auto.__name__ not in (getattr(config, "auto_map", None) or {}):
        raise InputError(
            f"{config.model_type!r} cannot be cast for {task}: transformers has no such model of this type; "
            "choose another --task."
        )
    with explained(f"{config.model_type!r} cannot be built as config.json says", CHECK_CONFIG, config):
        model: PreTrainedModel = without_data(lambda: auto.from_config(config, **options).eval())
    return model


def with_divisions(model: PreTrainedModel, scales: Mapping[str, StoredTensor]) -> None:
    """Divides the model's activations by the tensors of its checkpoint that are named so."""
    if scales:
        places = [f"{name}.{SCALES}" for name, _ in model.named_modules()]
        divide_activations(model, scales, checkpoint_renamer(model, places), model.dtype)


@contextmanager
def fake_tensors() -> Iterator[FakeTensorMode]:
    """Tensors with shapes and dtypes but no data, as long as the context lasts."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def without_data(make: Callable[[], Any]) -> Any:
    """The module that `make` gives; under fake tensors, made as transformers makes one that it loads.

    That is on the meta device, its weights not initialized: some authors count with values, which fake tensors lack.
    """
    if not isinstance(torch.empty(0), FakeTensor):
        return make()
    with unset_fake_temporarily(), torch.device("meta"), no_init_weights():
        module = make()
    made: dict[int, Any] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                fake = nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad)
                part._parameters[name] = made.setdefault(id(parameter), fake)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = made.setdefault(id(buffer), torch.empty_like(buffer, device="cpu"))
    return module


def real_buffers(model: PreTrainedModel, names: Iterator[str] | list[str]) -> Mapping[str, Tensor]:
    """The values of buffers that no checkpoint stores (rotary frequencies, embedding scales), from the author's code.

    transformers fills such buffers in `_init_weights` whenever it loads a checkpoint; so do we, on real copies of just
    the modules that own them.
    """
    values: dict[str, Tensor] = {}
    for name in names:
        owner_name, _, buffer = name.rpartition(".")
        owner = _real_copy(model.get_submodule(owner_name))
        model._init_weights(owner)  # type: ignore[no-untyped-call]
        values[name] = owner._buffers[buffer]  # type: ignore[assignment]
    unset = [name for name, value in values.items() if value.is_floating_point() and bool(value.isnan().any())]
    if unset:
        raise InputError(f"The model does not say how to fill its buffers {', '.join(unset)}; it cannot be cast yet.")
    return values


def _real_copy(module: nn.Module) -> nn.Module:
    """`module` without weights, its buffers real and NaN (integers: zero) until somebody fills them.

    It has children of the same kind: some authors fill those along with the module.
    """
    twin = nn.Module.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin.__dict__["_modules"] = {
        name: None if child is None else _real_copy(child) for name, child in module._modules.items()
    }
    twin.__dict__["_parameters"] = {
        name: None if p is None else nn.Parameter(torch.empty(p.shape, device="meta"), requires_grad=False)
        for name, p in module._parameters.items()
    }
    twin.__dict__["_buffers"] = {
        name: None
        if fake is None
        else torch.full(fake.shape, math.nan if fake.is_floating_point() else 0, dtype=fake.dtype)
        for name, fake in module._buffers.items()
    }
    return twin


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Parameters that share another one's weight: name → name of the weight the checkpoint stores."""
    tied: Any = getattr(model, "all_tied_weights_keys", None) or {}
    return dict(tied)


def checkpoint_renamer(model: PreTrainedModel, more: Iterable[str] = ()) -> Callable[[str], str]:
    """From a checkpoint's name of a tensor to the model's, by transformers' own tables of renamed modules.

    `more` are names that the model may have beside those it has.
    """
    known = {**dict.fromkeys(more, True), **model.state_dict()}
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]

    def rename(name: str) -> str:
        renamed, _ = rename_source_key(name, renamings, [], model.base_model_prefix, known)
        return name if name in known else renamed

    return rename


def merged(checkpoint: Checkpoint, model: PreTrainedModel) -> Checkpoint:
    """The checkpoint under the names of parameters that transformers makes of several tensors: stacks of experts.

    Nothing is read: a stack reads the rows it is asked for. Raises InputError where transformers would do something
    else than stack matrices, or a matrix of a stack is missing.
    """
    if not isinstance(model, PreTrainedModel):
        return checkpoint
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    if not converters:
        return checkpoint
    known = model.state_dict()
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted(checkpoint.tensors, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if pattern is not None and name not in known and target in known:
            found.setdefault(target, {}).setdefault(pattern, []).append(name)
    tensors = dict(checkpoint.tensors)
    for target, parts in found.items():
        rows = _in_order(target, parts, converters, checkpoint)
        members = [[tensors.pop(name) for name in row] for row in rows]
        tensors[target] = stack(target, members)
    return replace(checkpoint, tensors=tensors)


def _in_order(
    target: str, parts: Mapping[str, list[str]], converters: list[WeightConverter], checkpoint: Checkpoint
) -> list[tuple[str, ...]]:
    """The names of a stack's matrices: one row for each expert, in the order of transformers' converter."""
    converter = next(c for c in converters if set(parts) <= set(c.source_patterns))
    shape = [(type(operation), operation.dim) for operation in converter.operations if hasattr(operation, "dim")]
    if shape not in STACKINGS or len(shape) != len(converter.operations):
        said = ", ".join(map(str, converter.operations))
        raise InputError(
            f"{target} is made of {len(parts)} kinds of tensors of {checkpoint.path} by {said}, which cannot be done "
            "row by row; save the model again with save_pretrained(save_original_format=False)."
        )
    lists = [parts.get(pattern, []) for pattern in converter.source_patterns]
    if len({len(names) for names in lists}) > 1:
        counted = ", ".join(f"{len(names)} of {pattern}" for pattern, names in zip(converter.source_patterns, lists))  # noqa: B905
        raise InputError(
            f"{checkpoint.path} has {counted} for {target}; the checkpoint is incomplete, download or save it again."
        )
    return list(zip(*lists, strict=True))


STACKINGS = ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)])
"""What transformers does to tensors where a parameter is a stack of matrices: [experts, rows of one or two, width]."""
