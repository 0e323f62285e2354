"""The author's model without its weights: built under fake tensors from the configuration alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from truecast.trace.explaining import CHECK_CONFIG, NOT_YET, explained


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
    """The model of a class, or that an auto class has for `config`, in evaluation mode (`without_data`).

    Raises InputError where it has none, or the author's code does not take the configuration.
    """
    if issubclass(auto, PreTrainedModel):  # no code but that of transformers
        options.pop("trust_remote_code", None)
        make = auto._from_config
    elif type(config) in auto._model_mapping or auto.__name__ in (getattr(config, "auto_map", None) or {}):
        make = auto.from_config
    else:
        raise InputError(
            f"{config.model_type!r} cannot be cast for {task}: transformers has no such model of this type; "
            "choose another --task."
        )
    with explained(f"{config.model_type!r} cannot be built as config.json says", CHECK_CONFIG, config):
        model: PreTrainedModel = without_data(lambda: make(config, **options).eval())
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


def real_buffers(model: PreTrainedModel, names: Iterable[str]) -> Mapping[str, Tensor]:
    """The values of buffers that no checkpoint stores (rotary frequencies, position ids), as the author makes them.

    The model is constructed once more, its buffers real and its weights not. Raises InputError for a buffer that the
    construction does not make.
    """
    names = list(names)
    made = dict(_constructed(model).named_buffers(remove_duplicate=False)) if names else {}
    if unset := [name for name in names if name not in made or made[name].is_meta]:
        raise InputError(f"The model does not say how to fill its buffers {', '.join(unset)}; {NOT_YET}.")
    return {name: made[name] for name in names}


def _constructed(model: PreTrainedModel) -> PreTrainedModel:
    """A new model of the same configuration; where its author computes with its weights meanwhile, they are real."""

    def make() -> PreTrainedModel:
        return type(model)(copy.deepcopy(model.config))

    before = torch.get_default_dtype()
    torch.set_default_dtype(model.dtype)
    try:
        with torch.random.fork_rng(devices=[]):
            try:
                with _weights_without_data():
                    return make()
            except (NotImplementedError, RuntimeError):
                return make()
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _weights_without_data() -> Iterator[None]:
    """Modules made in the context have their parameters on the meta device as soon as they are registered."""
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = registered  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Parameters that share another one's weight: name → name of the weight the checkpoint stores."""
    tied: Any = getattr(model, "all_tied_weights_keys", None) or {}
    return dict(tied)
