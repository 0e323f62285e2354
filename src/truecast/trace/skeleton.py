"""The author's model without its weights: built under fake tensors from the configuration alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from truecast.checkpoint.divisions import SCALES
from truecast.checkpoint.model import Checkpoint, StoredTensor
from truecast.checkpoint.schemes import CONFIG_KEYS
from truecast.checkpoint.tasks import GENERATION
from truecast.errors import InputError
from truecast.trace.conversion import checkpoint_renamer
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
