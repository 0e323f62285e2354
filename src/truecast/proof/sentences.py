"""What follows the encoder in a sentence-transformers folder, once more and from the folder itself.

Data flow: modules.json, settings and weights on disk → sentence-transformers' own classes where it is installed, else
the definitions below, written after its forward() → modules in place of the exporter's, and a function that runs them.
Nothing here is shared with what made the graph (`trace.pooling`) but the names of parameters.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors.numpy
import torch
from torch import Tensor, nn

from truecast.artifact import Check
from truecast.checkpoint.tasks import SENTENCES
from truecast.proof.tally import counted
from truecast.trace.author import AuthorModule

LIBRARY = "sentence_transformers"
OWN = "the proof's own definitions, since sentence-transformers is not installed"
Features = dict[str, Any]
GIVEN = ("attention_mask", "prompt_length")
"""Features that the steps are given beside the tokens."""


@dataclass(frozen=True)
class Followed:
    """An author whose steps are the folder's own; `folder` is None where it has none. `said` says whose they are."""

    author: AuthorModule
    folder: Path | None = None
    names: tuple[str, ...] = ()
    said: str = ""

    def check(self, tier: str) -> list[Check]:
        """Whether the reference's steps, once loaded, have the very values of the folder's files."""
        if self.folder is None:
            return []
        faults = [fault for name in self.names for fault in _unlike(self.author.module, self.folder, name)]
        return [counted(tier, "weights of the steps behind the encoder", faults, "tensors", self.said)]


def followed(author: AuthorModule, folder: Path) -> Followed:
    """The author with every step behind its encoder as modules.json in `folder` says."""
    if author.task != SENTENCES:
        return Followed(author)
    listed = json.loads((folder / "modules.json").read_text())[1:]
    names = []
    for step in listed:
        path, kind = str(step["path"]), str(step["type"])
        name = (path or kind.rpartition(".")[2]).replace("/", "_").replace(".", "_")
        setattr(author.module, name, _step(folder, path, kind).eval())
        names.append(name)

    def finish(outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        hidden = outputs["last_hidden_state"]
        mask = inputs.get("attention_mask", torch.ones(hidden.shape[:2], dtype=torch.long))
        rows = [_run(author.module, names, hidden[i], mask[i], inputs, i) for i in range(len(hidden))]
        made = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
        return {"last_hidden_state": hidden, **made}

    ours = all(isinstance(author.module.get_submodule(name), _Own) for name in names)
    said = f"steps of {LIBRARY} {importlib.metadata.version(LIBRARY)}" if not ours else OWN
    return Followed(replace(author, finish=finish), folder, tuple(names), said)


def _run(
    module: nn.Module, names: list[str], hidden: Tensor, mask: Tensor, inputs: Mapping[str, Tensor], row: int
) -> Features:
    """What the steps make of one text; sentence-transformers takes one length of a prompt for all texts."""
    tokens = hidden[None]
    features: Features = {"token_embeddings": tokens, "attention_mask": mask[None]}
    if "prompt_length" in inputs:
        features["prompt_length"] = int(inputs["prompt_length"][row])
    for name in names:
        features = module.get_submodule(name)(features)
    return {key: value for key, value in features.items() if key not in GIVEN and value is not tokens}


def _step(folder: Path, path: str, kind: str) -> nn.Module:
    """A step with the weights of its file."""
    if kind.startswith(f"{LIBRARY}.") and find_spec(LIBRARY) is not None:
        place, _, name = kind.rpartition(".")
        loaded: nn.Module = getattr(importlib.import_module(place), name).load(str(folder), subfolder=path)
        return loaded
    file = folder / path / "config.json"
    settings = json.loads(file.read_text()) if file.is_file() else {}
    step = OWN_STEPS[kind.rpartition(".")[2]](settings, kind.startswith("pylate."))
    step.load_state_dict({name: torch.from_numpy(array) for name, array in _stored(folder / path).items()})
    return step


def _stored(place: Path) -> dict[str, Any]:
    file = place / "model.safetensors"
    return safetensors.numpy.load_file(file) if file.is_file() else {}


def _unlike(module: nn.Module, folder: Path, name: str) -> list[str]:
    paths = [str(step["path"]) for step in json.loads((folder / "modules.json").read_text())]
    place = next((path for path in paths if path.replace("/", "_").replace(".", "_") == name), None)
    if place is None:
        return []
    held = dict(module.get_submodule(name).named_parameters())
    stored = _stored(folder / place)
    faults = [f"{name}.{key} is on one side only" for key in sorted(set(held) ^ set(stored))]
    both = sorted(set(held) & set(stored))
    return faults + [f"{name}.{key}" for key in both if not held[key].equal(torch.from_numpy(stored[key]).float())]


class _Own(nn.Module):
    """A step by the definition of sentence-transformers 6.2, for one text: features in, features out."""

    def __init__(self, settings: Mapping[str, Any], of_tokens: bool) -> None:
        super().__init__()
        self.settings = settings
        self.source = "token_embeddings" if of_tokens else settings.get("module_input_name") or "sentence_embedding"
        self.result = "token_embeddings" if of_tokens else settings.get("module_output_name") or self.source


class _Pooling(_Own):
    """base formulas: sentence_transformers/sentence_transformer/modules/pooling.py, `_forward_padded`."""

    def forward(self, features: Features) -> Features:
        tokens, mask = features["token_embeddings"][0], features["attention_mask"][0].bool()
        begin = int(mask.int().argmax()) if mask.any() else 0
        kept = mask.clone()
        if self.settings.get("include_prompt", True) is False:
            kept[: begin + features.get("prompt_length", 0)] = False
        vectors = [self._pooled(mode, tokens, kept, begin) for mode in self._modes()]
        features["sentence_embedding"] = torch.cat(vectors)[None]
        return features

    def _modes(self) -> list[str]:
        mode = self.settings.get("pooling_mode")
        if mode is not None:
            return [mode] if isinstance(mode, str) else mode
        order = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
        on = [name for name in order if self.settings.get(f"pooling_mode_{name}")]
        return on or ["mean_tokens"]

    def _pooled(self, mode: str, tokens: Tensor, kept: Tensor, begin: int) -> Tensor:
        """[length, width] → [width]."""
        counted = tokens[kept]
        if mode.startswith("cls"):
            return tokens[int(kept.int().argmax())]
        if mode == "lasttoken":
            return counted[-1] if len(counted) else torch.zeros_like(tokens[0])
        if mode.startswith("max"):
            return counted.amax(0) if len(counted) else torch.full_like(tokens[0], -torch.inf)
        if mode.startswith("weightedmean"):
            weights = (torch.arange(1, len(tokens) + 1) - begin)[kept].to(tokens.dtype)[:, None]
            return (counted * weights).sum(0) / weights.sum().clamp(min=1e-9)
        count = torch.tensor(float(len(counted)), dtype=tokens.dtype).clamp(min=1e-9)
        return counted.sum(0) / (count.sqrt() if "sqrt_len" in mode else count)


class _Dense(_Own):
    """sentence_transformers/base/modules/dense.py, and pylate/models/Dense.py for token embeddings."""

    def __init__(self, settings: Mapping[str, Any], of_tokens: bool) -> None:
        super().__init__(settings, of_tokens)
        self.linear = nn.Linear(settings["in_features"], settings["out_features"], settings.get("bias", True))
        if settings.get("use_residual") and settings["in_features"] != settings["out_features"]:
            self.residual = nn.Linear(settings["in_features"], settings["out_features"], False)
        place, _, name = (settings.get("activation_function", "torch.nn.Tanh") or "torch.nn.Identity").rpartition(".")
        self.activation = getattr(importlib.import_module(place), name)()

    def forward(self, features: Features) -> Features:
        x = features[self.source]
        result = self.activation(self.linear(x))
        if self.settings.get("use_residual"):
            result = result + (self.residual(x) if hasattr(self, "residual") else x)
        features[self.result] = result
        return features


class _LayerNorm(_Own):
    """sentence_transformers/sentence_transformer/modules/layer_norm.py."""

    def __init__(self, settings: Mapping[str, Any], of_tokens: bool) -> None:
        super().__init__(settings, of_tokens)
        self.norm = nn.LayerNorm(settings["dimension"])

    def forward(self, features: Features) -> Features:
        features["sentence_embedding"] = self.norm(features["sentence_embedding"])
        return features


class _Normalize(_Own):
    """sentence_transformers/base/modules/normalize.py."""

    def forward(self, features: Features) -> Features:
        if (value := features.get(self.source)) is not None:
            features[self.result] = value / torch.linalg.vector_norm(value, dim=-1, keepdim=True).clamp(min=1e-12)
        return features


class _Dropout(_Own):
    def forward(self, features: Features) -> Features:
        return features


OWN_STEPS: Mapping[str, Callable[[Mapping[str, Any], bool], _Own]] = {
    "Pooling": _Pooling,
    "Dense": _Dense,
    "LayerNorm": _LayerNorm,
    "Normalize": _Normalize,
    "Dropout": _Dropout,
}
