"""The author's model as transformers itself loads it: its weights, its buffers, and what it found odd.

| the source is | what transformers is given |
|---|---|
| a folder of floats | the folder: which files, names and adapters there are is its own affair |
| a folder that a library quantized | the tensors of `definitions`, under the names of the files |
| a folder with an adapter | the same, changed as `adapters` defines it |
| a GGUF file | the tensors that the gguf package decodes, under the names of the model |
| either, whose weights are not needed | tensors without values; only the buffers are filled |

Of float32 in safetensors nothing is copied: parameters are views of the mapped file until they are written to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from truecast.checkpoint.model import Checkpoint
from truecast.errors import InputError
from truecast.proof.source.adapters import adapter_of, with_adapter
from truecast.proof.source.definitions import CONFIGS, Decoded, decoded, stated_of
from truecast.proof.source.experts import stacked
from truecast.proof.source.gguf_file import GgufFile, parameters_of
from truecast.trace.skeleton import load_config

REFUSALS = (
    *(OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, AssertionError, ImportError),
    SafetensorError,
)
"""What transformers and an author's constructor raise for what they do not take."""
CACHES = ("use_cache", "use_mems_eval")
"""Settings by which a model gives what it keeps for the next tokens besides its outputs; the second is XLNet's."""
STACK_RANK = 3
OWN_CODE = "the definitions of the formats"
INSIDE = re.compile(r"(^|(?<=\.))_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into names, which transformers does not take out again."""
FRONT = re.compile(r"((module|base_model\.model|pretrained_model)\.)+")
"""What DistributedDataParallel, peft and trl put in front of them all; trl's value head has a name of its own."""
VALUE_HEAD = re.compile(r"(^|\.)(v_head|value_head)\.")
DIVISIONS = re.compile(r"\.scales$")
"""Tensors by which a checkpoint divides activations: transformers has no place for them."""


@dataclass(frozen=True)
class Loaded:
    """A model and how it came to be.

    `loader` says it in words, and is empty where no weights were loaded. `missing` and `unexpected` are the keys that
    transformers reports; `divisions` the tensors that are for the model's divided activations. `is_adapted` says that
    an adapter was added to the weights. `made` is what a library made of the checkpoint that was loaded. `file` is the
    GGUF file.
    """

    model: PreTrainedModel
    loader: str = ""
    missing: frozenset[str] = frozenset()
    unexpected: frozenset[str] = frozenset()
    divisions: Mapping[str, Decoded] = field(default_factory=dict)
    is_adapted: bool = False
    made: Checkpoint | None = None
    file: GgufFile | None = None


def load_decoder(checkpoint: Checkpoint, trust_remote_code: bool = False, weights: bool = True) -> Loaded:
    """The causal language model of a checkpoint in float32; without `weights`, they have no values.

    Raises InputError when transformers does not load it.
    """
    given = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": torch.float32}
    return _loaded(checkpoint, AutoModelForCausalLM, given, trust_remote_code, weights, lambda config: None)


def load_author(author: PreTrainedModel, checkpoint: Checkpoint, trust_remote_code: bool = False) -> Loaded:
    """The model of a checkpoint that is of the class and the dtype of `author`; raises InputError as `load_decoder`."""
    given = {"attn_implementation": "eager", "dtype": author.dtype}
    return _loaded(checkpoint, type(author), given, trust_remote_code, True, _without_cache)


def _without_cache(config: PreTrainedConfig) -> None:
    """A module without a cache gives no keys and values besides its outputs."""
    for part in (config, config.get_text_config()):
        for name in CACHES:
            if getattr(part, name, None):
                setattr(part, name, False)


def _loaded(
    checkpoint: Checkpoint,
    kind: Any,
    given: Mapping[str, Any],
    trust_remote_code: bool,
    weights: bool,
    change: Callable[[PreTrainedConfig], None],
) -> Loaded:
    trusted = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    options = {**given, **trusted, "output_loading_info": True}
    folder = checkpoint.path if checkpoint.format == "safetensors" and weights else None
    try:
        with _quiet():
            config = load_config(checkpoint, trust_remote_code) if folder is None else _config(folder, trusted)
            change(config)
            if checkpoint.format == "gguf" and weights:
                return _of_file(checkpoint, _bare(kind, config, trust_remote_code), config, options)
            return _of_tensors(checkpoint, folder, kind, config, options)
    except REFUSALS as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{checkpoint.path} cannot be compared with the model that transformers loads from it: it loads none "
            f"({reason}); check that AutoModel.from_pretrained takes it."
        ) from error


def _of_tensors(
    checkpoint: Checkpoint,
    folder: Path | None,
    kind: Any,
    config: PreTrainedConfig,
    options: Mapping[str, Any],
) -> Loaded:
    """The model of a folder, or, without one, of tensors without values; of a class, or of what an auto class gives."""
    state = _empty(checkpoint) if folder is None else decoded(folder)
    names = _unwrapped(state)
    quantized = folder is not None and stated_of(folder) is not None
    plain = names.keys() == state.keys() and not quantized
    adapter = folder and adapter_of(folder, checkpoint.adapter.path if checkpoint.adapter else None)
    if adapter is not None:
        names = with_adapter(names, adapter)
    divisions = {name: names.pop(name) for name in [*names] if DIVISIONS.search(name)}
    if folder is not None and plain and adapter is None:
        model, info = kind.from_pretrained(folder, config=config, use_safetensors=True, **options)
    else:
        kind = type(_bare(kind, config, options["trust_remote_code"]))
        model, info = kind.from_pretrained(None, config=config, state_dict=names, **options)
    if whole := stacked(names, _stacks(model, info["missing_keys"])):
        kind = type(model)
        model, info = kind.from_pretrained(None, config=config, state_dict=whole, **options)
    loader = f"transformers {transformers.__version__}"
    if quantized or adapter or whole:
        loader += f" from {OWN_CODE}"
    loaded = _finished(model, info, "" if folder is None else loader, divisions)
    return replace(loaded, is_adapted=adapter is not None)


def _config(folder: Path, trusted: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration as transformers reads it, without what it says of the quantization."""
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder, **trusted)
    for name in CONFIGS:
        if hasattr(config, name):
            delattr(config, name)
    for part in (config, config.get_text_config()):
        padding, rows = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        if isinstance(padding, int) and isinstance(rows, int) and padding >= rows:
            part.pad_token_id = None  # a row without a gradient: a matter of training, for which classes refuse it
    return config


def _stacks(model: PreTrainedModel, missing: Iterable[str]) -> dict[str, int]:
    """Parameters of experts without a tensor, and how many experts each has."""
    shapes = {name: model.get_parameter(name).shape for name in missing if ".experts." in name}
    return {name: shape[0] for name, shape in shapes.items() if len(shape) == STACK_RANK}


def _bare(kind: Any, config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """A model without values; an auto class does not say which class it gives before."""
    with torch.device("meta"):
        if isinstance(kind, type) and issubclass(kind, PreTrainedModel):
            return kind(config)
        model: PreTrainedModel = kind.from_config(config, trust_remote_code=trust_remote_code)
        return model


def _of_file(
    checkpoint: Checkpoint, bare: PreTrainedModel, config: PreTrainedConfig, options: Mapping[str, Any]
) -> Loaded:
    """The model of a GGUF file and its adapter, of the class that `bare` is."""
    file = GgufFile.open(checkpoint.path)
    state = parameters_of(file, {name: tuple(tensor.shape) for name, tensor in bare.state_dict().items()})
    if checkpoint.adapter is not None:
        state = with_adapter(state, checkpoint.adapter.path)
    kind: Any = type(bare)
    model, info = kind.from_pretrained(None, config=config, state_dict=state, **options)
    loader = f"transformers {transformers.__version__} from the gguf package {version('gguf')}"
    return replace(_finished(model, info, loader, {}), file=file, is_adapted=checkpoint.adapter is not None)


def _empty(checkpoint: Checkpoint) -> dict[str, Decoded]:
    """Tensors of the checkpoint's shapes without values, which take no memory before they are written to."""

    def make(shape: tuple[int, ...]) -> Callable[[], torch.Tensor]:
        return lambda: torch.empty(shape)

    return {name: Decoded(make(tensor.shape)) for name, tensor in checkpoint.tensors.items()}


def _unwrapped(state: Mapping[str, Decoded]) -> dict[str, Decoded]:
    """The same under the names that the model has, without those of what it was trained in."""
    plain = {name: INSIDE.sub("", name) for name in state}
    of_model = [name for name in plain.values() if not VALUE_HEAD.search(name)]
    if of_model and all(FRONT.match(name) for name in of_model):
        plain = {name: FRONT.sub("", short, count=1) for name, short in plain.items()}
    return {plain[name]: tensor for name, tensor in state.items()}


def _finished(model: PreTrainedModel, info: Mapping[str, Any], loader: str, divisions: Mapping[str, Decoded]) -> Loaded:
    nn.Module.eval(model).requires_grad_(False)
    missing = frozenset(info["missing_keys"])
    unexpected = frozenset(key for key in info["unexpected_keys"] if not (divisions and DIVISIONS.search(key)))
    return Loaded(model, loader, missing, unexpected, divisions)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from printing: what it found is in the certificate."""
    said: Any = transformers.utils.logging
    verbosity, bars = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity(said.CRITICAL)
    said.disable_progress_bar()
    try:
        yield
    finally:
        said.set_verbosity(verbosity)
        if bars:
            said.enable_progress_bar()
