"""Tiny checkpoints with random weights, built from transformers' own classes: what most tests export.

Why not transformers' default initialisation: its standard deviation of 0.02 makes every score and logit nearly zero,
and a model whose layers hardly matter hides errors. Here every part matters: products have unit-sized outputs, biases
and norm weights are far from neutral, attention is neither uniform nor one-hot, and epsilons, windows and thresholds
are set (by the cases) where a short sequence already crosses them.
"""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers.pytorch_utils import Conv1D

END_TOKEN = "<|end|>"
END_TOKEN_ID = 256
"""The one special token: the 256 bytes come before it, so every vocabulary of 257 or more can hold the tokenizer."""

LINEAR_GAIN = 1.4
"""Standard deviation of a product's output for inputs of unit size; scores then spread by about 2."""
EMBEDDING_STD = 0.05
"""Small beside what the layers add, so that a model with tied embeddings does not repeat its last token for ever."""
NORM_SPREAD = 0.3
"""Norm weights are uniform within this distance of their initial value."""
BIAS_STD = 0.2
OTHER_STD = 0.3

GRID_BLOCK = 32
GRID_LARGEST = 8
"""Products' weights lie near multiples of a step, the largest of each 32 being 8 steps: a trained model survives being
stored in 4 bits, a random one does not (half of its next tokens change), and no limit on that price could be held."""
GRID_NOISE = 0.05
"""Distance from the grid, in steps: 4-bit storage still has a price, so comparing with the wrong weights is noticed."""

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One tiny checkpoint.

    `config_class` and `model_class` name classes of transformers, `settings` the arguments of the first; a model of
    text gets a tokenizer. `hazards` says what is easy to get wrong
    in this model: each names the settings that would undo it, and a test holds every hazard to changing the logits.
    `embedding_std` is raised for models that read the embedding without a norm. An `optional` case is tried and
    reported, and may fail.

    On disk: `stored` is the dtype, `shards` the least number of files, `removed_prefix` is what the tensors' names
    lack, and `unused_tensors` maps names to shapes of tensors that no weight needs; old libraries wrote such files.
    """

    name: str
    config_class: str
    settings: Settings = field(default_factory=dict)
    hazards: Mapping[str, Settings] = field(default_factory=dict)
    embedding_std: float = EMBEDDING_STD
    optional: bool = False
    model_class: str = "AutoModelForCausalLM"
    stored: str = "float32"
    shards: int = 1
    removed_prefix: str = ""
    unused_tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def config(self, **changes: Any) -> transformers.PreTrainedConfig:
        """The model's configuration, with `changes` over the case's settings (copied: configs write into theirs)."""
        config: transformers.PreTrainedConfig = getattr(transformers, self.config_class)(
            **copy.deepcopy({**self.settings, **changes})
        )
        return config


def tiny_model(case: Case, **changes: Any) -> transformers.PreTrainedModel:
    """The case's model in float32 with its weights; `changes` alter the configuration and leave the weights alike."""
    torch.manual_seed(zlib.crc32(case.name.encode()))  # for what a model initializes in its own way
    maker = getattr(transformers, case.model_class)
    build = maker.from_config if case.model_class.startswith("Auto") else maker._from_config
    model: transformers.PreTrainedModel = build(case.config(**changes), dtype=torch.float32)
    with torch.no_grad():
        for name, owner, parameter in _parameters(model):
            generator = torch.Generator().manual_seed(zlib.crc32(f"{case.name}/{name}".encode()))
            values = _values(owner, name.rpartition(".")[2], parameter, generator)
            parameter.copy_(case.embedding_std * values if isinstance(owner, nn.Embedding) else values)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                _give_statistics(module)
    return model.eval()


def _give_statistics(norm: nn.BatchNorm2d) -> None:
    """A mean and a variance as after training: those of a new BatchNorm change nothing."""
    assert norm.running_mean is not None and norm.running_var is not None
    generator = torch.Generator().manual_seed(norm.num_features)
    norm.running_mean.copy_(OTHER_STD * torch.randn(norm.num_features, generator=generator))
    norm.running_var.copy_(0.5 + torch.rand(norm.num_features, generator=generator))


def stored_model(folder: Path) -> transformers.PreTrainedModel:
    """The model of a checkpoint folder as transformers loads it, in float32."""
    model: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def tiny_checkpoint(case: Case, folder: Path) -> Path:
    """Writes the case's checkpoint (safetensors, configs, a byte-level tokenizer) into `folder` and returns it."""
    model = tiny_model(case).to(getattr(torch, case.stored))
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    shard_bytes = size // case.shards + 1 if case.shards > 1 else 10 * size
    model.save_pretrained(folder, max_shard_size=shard_bytes)
    if case.removed_prefix or case.unused_tensors:
        _make_old(folder / "model.safetensors", case)
    if model.main_input_name == "input_ids":
        write_tokenizer(folder)
    return folder


def _make_old(file: Path, case: Case) -> None:
    """Gives a safetensors file the names and the extra tensors that older libraries wrote."""
    tensors = {name.removeprefix(case.removed_prefix): tensor for name, tensor in load_file(file).items()}
    extra = {name: torch.ones(shape) for name, shape in case.unused_tensors.items()}
    save_file(tensors | extra, file, metadata={"format": "pt"})


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Every parameter once (tied ones under their first name) with its full name and the module that owns it."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}", module, parameter


def _values(owner: nn.Module, name: str, initial: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random values for one parameter, of a size that makes it matter; an embedding's have standard deviation 1."""
    noise = torch.randn(initial.shape, generator=generator)
    kind = type(owner).__name__
    if "Norm" in kind and "bias" not in name:
        adds_one = kind.endswith("1P")  # starts at one although one is added to it
        return initial - int(adds_one) + NORM_SPREAD * (2 * torch.rand(initial.shape, generator=generator) - 1)
    if isinstance(owner, nn.Embedding):
        return _near_grid(noise, generator)
    if "bias" in name:
        return initial + BIAS_STD * noise
    if isinstance(owner, Conv1D):
        return LINEAR_GAIN * initial.shape[0] ** -0.5 * _near_grid(noise.T.contiguous(), generator).T
    if initial.dim() >= 2:
        return LINEAR_GAIN * _fan_in(owner, initial) ** -0.5 * _near_grid(noise, generator)
    return initial + OTHER_STD * noise


def _near_grid(noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Moves normal values [..., n] near a 4-bit grid along the last axis; their standard deviation stays about 1."""
    steps_per_std = GRID_LARGEST / 2.5
    steps = (noise * steps_per_std).round().clamp(1 - GRID_LARGEST, GRID_LARGEST - 1)
    steps += GRID_NOISE * torch.randn(noise.shape, generator=generator)
    steps[..., ::GRID_BLOCK] = GRID_LARGEST * noise[..., ::GRID_BLOCK].sign()
    return steps / steps_per_std


def _fan_in(owner: nn.Module, weight: torch.Tensor) -> int:
    if isinstance(owner, nn.Conv1d | nn.Conv2d):
        return weight[0].numel()
    return weight.shape[-1]


def write_tokenizer(folder: Path) -> None:
    """A tokenizer with one token per byte: any text is valid, and decoding gives it back."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_TOKEN, special=True, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_TOKEN, "pad_token": END_TOKEN}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
