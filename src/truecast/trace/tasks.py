"""The author's model for a task of Hugging Face: its class, and the inputs that such a model takes.

Data flow: configuration and task → the class that transformers keeps for it → its inputs by the names of forward(),
with examples of unusual sizes. In a sentence-transformers folder the pooling is part of what is cast.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from truecast.checkpoint.divisions import activation_scales
from truecast.checkpoint.folder import read_side_file
from truecast.checkpoint.model import Checkpoint
from truecast.checkpoint.tasks import FEATURES, SENTENCES, TRANSFORMER_FILE, class_doing
from truecast.errors import InputError
from truecast.trace.author import BATCH, AuthorModule, Axis, InputSpec
from truecast.trace.beside import inputs_beside
from truecast.trace.hearing import SOUNDS, sound_inputs
from truecast.trace.pooling import PROMPT, attach_steps, needs_prompt_length
from truecast.trace.skeleton import built, load_config, with_divisions

CLASSES: Mapping[str, Any] = {
    FEATURES: AutoModel,
    SENTENCES: AutoModel,
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "fill-mask": AutoModelForMaskedLM,
    "image-classification": AutoModelForImageClassification,
    "audio-classification": AutoModelForAudioClassification,
    "automatic-speech-recognition": AutoModelForCTC,
}
EXAMPLE_BATCH, EXAMPLE_LENGTH = 3, 17
"""Sizes of the examples: unusual and different, so that one baked into the graph is easy to see."""
LENGTH = "sequence_length"
NO_LIMIT = 10**6
"""tokenizer_config.json says a number far beyond this one when there is no limit."""
LEAST_VOCABULARY = 100
"""Token ids of an example where no configuration says how many there are."""
LONGEST_PROMPT = 8
"""Tokens of a prompt in the proof; the graph takes any number."""
CACHES = ("use_cache", "use_mems_eval")
"""Settings by which a model keeps keys and values, or, as XLNet does, states of layers, for the next tokens."""
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def author_of(
    checkpoint: Checkpoint,
    task: str,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> AuthorModule:
    """The author's model of a checkpoint for `task`, weights not loaded; under fake tensors it takes no memory.

    Without them it has the random weights of a new model, and real buffers.

    Raises InputError when transformers has no such model, or its inputs are of no known kind.
    """
    config = load_config(checkpoint, trust_remote_code)
    _without_cache(config)
    options = {"dtype": dtype, "attn_implementation": "eager", "trust_remote_code": trust_remote_code}
    model = built(class_for(checkpoint, config, task), config, task, **options)
    with_divisions(model, activation_scales(checkpoint))
    specs = _inputs(model, config, checkpoint, dtype)
    if task != SENTENCES:
        return AuthorModule(model, specs, task, str(checkpoint.path), checkpoint.config)
    finish = attach_steps(model, checkpoint, dtype)
    if needs_prompt_length(checkpoint):
        example = torch.ones(EXAMPLE_BATCH, dtype=torch.long)
        specs = (*specs, InputSpec(PROMPT, example, {0: Axis(BATCH)}, LONGEST_PROMPT, behind=True))
    return AuthorModule(model, specs, task, str(checkpoint.path), checkpoint.config, finish)


def class_for(checkpoint: Checkpoint, config: PreTrainedConfig, task: str) -> Any:
    """The class that config.json names where it does the task and is of transformers, else the task's auto class.

    An auto class knows one class for each kind of model: T5Model, where the checkpoint is a T5EncoderModel.
    """
    name = class_doing(checkpoint, task)
    if name is None or "auto_map" in checkpoint.config:
        return CLASSES[task]
    place = type(config).__module__.replace(".configuration_", ".modeling_")
    found = getattr(transformers, name, None) or getattr(importlib.import_module(place), name, None)
    fits = (
        isinstance(found, type) and issubclass(found, PreTrainedModel) and isinstance(config, found.config_class or ())
    )
    return found if fits else CLASSES[task]


def _without_cache(config: PreTrainedConfig) -> None:
    """Nobody asks a module without a cache for keys and values; keeping a window of them needs a least length."""
    for part in (config, config.get_text_config()):
        for name in CACHES:
            if getattr(part, name, None):
                setattr(part, name, False)


def _inputs(
    model: PreTrainedModel, config: PreTrainedConfig, checkpoint: Checkpoint, dtype: torch.dtype
) -> tuple[InputSpec, ...]:
    main = model.main_input_name
    if main == "input_ids":
        return tuple(text_inputs(model, checkpoint.config, checkpoint.side_files))
    batch = {0: Axis(BATCH)}
    if main == "pixel_values":
        height, width = _image_size(config)
        pixels = torch.zeros(EXAMPLE_BATCH, int(_of_pictures(config, "num_channels") or 3), height, width, dtype=dtype)
        return (InputSpec(main, pixels, batch),)
    if main in SOUNDS:
        return sound_inputs(model, config, checkpoint, dtype, EXAMPLE_BATCH)
    raise InputError(
        f"{type(model).__name__} takes {main!r}, which has no example here; give the module and example_inputs."
    )


def text_inputs(
    module: nn.Module, config: Mapping[str, Any], files: Mapping[str, Callable[[], bytes]]
) -> list[InputSpec]:
    """The inputs of forward() that a tokenizer makes; raises InputError when there is none."""
    longest = _longest(module, config, files)
    length = {1: Axis(LENGTH, 1, longest)} if longest != 1 else {}  # an axis of one size is not free
    axes, shape = {0: Axis(BATCH), **length}, (EXAMPLE_BATCH, min(EXAMPLE_LENGTH, longest or EXAMPLE_LENGTH))
    highs = {
        "input_ids": int(config.get("vocab_size") or LEAST_VOCABULARY),
        "attention_mask": 2,
        "token_type_ids": int(config.get("type_vocab_size") or 0),
    }
    taken = inspect.signature(module.forward).parameters
    names = [name for name in TEXT_INPUTS if name in taken and highs[name] > 1]
    if "input_ids" not in names:
        raise InputError(
            f"{type(module).__name__} takes no input_ids, so truecast has no example; give example inputs."
        )
    # one tensor object for each input: torch.export takes an object used twice for one input
    tokens = [InputSpec(n, torch.full(shape, int(n == "attention_mask")), axes, highs[n]) for n in names]
    return [*tokens, *inputs_beside(module, axes, shape, _settings(module, config))]


def _settings(module: nn.Module, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration with what its class adds to the file."""
    own = getattr(module, "config", None)
    return {**own.to_dict(), **config} if isinstance(own, PreTrainedConfig) else config


def _longest(module: nn.Module, config: Mapping[str, Any], files: Mapping[str, Callable[[], bytes]]) -> int | None:
    """Tokens that the model takes: what sentence-transformers or its tokenizer stops at, or else its positions."""
    settings = [read_side_file(files, name) for name in files if TRANSFORMER_FILE.fullmatch(name)]
    tokenizer = read_side_file(files, "tokenizer_config.json")
    stop = next((one["max_seq_length"] for one in settings if one.get("max_seq_length")), None)
    stated = (_positions(module, config), stop or tokenizer.get("model_max_length"))
    limits = [n for n in stated if isinstance(n, int | float) and 0 < n < NO_LIMIT]
    return int(min(limits)) if limits else None


def _positions(module: nn.Module, config: Mapping[str, Any]) -> int | None:
    """Positions of the model; those of RoBERTa's kind are counted from behind the table's row for padding on."""
    stated = config.get("max_position_embeddings") or config.get("n_positions")
    tables = [m for m in module.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == stated]
    if not tables:  # T5 states positions that it does not have
        return config.get("max_position_embeddings")
    padding = tables[0].padding_idx
    return tables[0].num_embeddings - (0 if padding is None else padding + 1)


PICTURES = ("vision_config", "backbone_config")
"""Parts of a configuration that are of what sees."""


def _of_pictures(config: PreTrainedConfig, name: str) -> Any:
    """A setting of the model's, or of the part of it that sees."""
    parts = (config, *(getattr(config, part, None) for part in PICTURES))
    return next((value for part in parts if (value := getattr(part, name, None)) is not None), None)


def _image_size(config: PreTrainedConfig) -> tuple[int, int]:
    size = _of_pictures(config, "image_size")
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    return 224, 224
