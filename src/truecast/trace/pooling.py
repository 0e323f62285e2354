"""What follows the encoder in a sentence-transformers folder: the steps that modules.json lists, as modules of torch.

Data flow: modules.json → the settings and weights of every step → modules that hand on features by name
(`token_embeddings` [batch, length, width], `sentence_embedding` [batch, width]) → the graph's outputs. The formulas are
those of sentence-transformers 6 (https://github.com/huggingface/sentence-transformers) and of PyLate's Dense; the proof
has definitions of its own (`proof.sentences`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from truecast.checkpoint.model import Checkpoint
from truecast.checkpoint.pickles import refuse_pickle
from truecast.checkpoint.safetensors_format import SINGLE_NAME, read_file
from truecast.checkpoint.tasks import FEATURES, MODULES_FILE, transformer_settings
from truecast.errors import InputError

Tensors = Mapping[str, Tensor]
Finish = Callable[[Tensors, Tensors], dict[str, Tensor]]
"""(outputs, inputs) → outputs, more of them."""
HIDDEN, TOKENS, SENTENCE = "last_hidden_state", "token_embeddings", "sentence_embedding"
MASK, PROMPT = "attention_mask", "prompt_length"
LEAST_COUNT = 1e-9
"""Divides instead of a count of no tokens at all, as in sentence-transformers."""
NOWHERE = 1 << 31
"""A position beyond any text."""
LIBRARIES = ("sentence_transformers", "pylate")
TRANSFORMER = "Transformer"
PLAIN = {"method": "forward", "method_output_name": HIDDEN}
PICKLE_NAME = "pytorch_model.bin"


@dataclass(frozen=True)
class Entry:
    """One line of modules.json: the class's full name, and the step's folder ("" for the folder itself)."""

    type: str
    path: str

    @property
    def kind(self) -> str:
        """The name of the class; the full one where it is no class of sentence-transformers or PyLate."""
        known = self.type.partition(".")[0] in LIBRARIES
        return self.type.rpartition(".")[2] if known else self.type

    @property
    def name(self) -> str:
        """What its module is called in the author's, and its weights begin with."""
        return (self.path or self.kind).replace("/", "_").replace(".", "_")


def require_alone(checkpoint: Checkpoint) -> None:
    """Raises InputError where a model with a head has steps behind it."""
    if behind := entries(checkpoint):
        raise _refused(checkpoint, behind[0])


def require_hidden_states(checkpoint: Checkpoint) -> None:
    """Raises InputError where the steps take something else than the last hidden state that forward() gives."""
    settings = transformer_settings(checkpoint)
    task, texts = settings.get("transformer_task", FEATURES), settings.get("modality_config", {"text": PLAIN})
    taken = texts.get("text") or {}
    if task != FEATURES or {key: taken.get(key) for key in PLAIN} != PLAIN:
        what = f"{taken.get('method', 'nothing')}() → {taken.get('method_output_name')}"
        raise InputError(
            f"The encoder of {checkpoint.path} does {task} and gives its steps {what} for texts; truecast knows steps "
            f"behind {PLAIN['method']}() → {HIDDEN}: take the model alone with --task {FEATURES}."
        )


def entries(checkpoint: Checkpoint) -> list[Entry]:
    """The steps behind the encoder; raises InputError where the first of all is no Transformer of this very folder."""
    listed = json.loads(checkpoint.side_files[MODULES_FILE]())
    found = [Entry(str(module.get("type", "")), str(module.get("path", ""))) for module in listed]
    if not found or found[0].kind != TRANSFORMER or found[0].path:
        raise _refused(checkpoint, found[0] if found else Entry("no step", ""), "does not begin with")
    return found[1:]


def attach_steps(model: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype) -> Finish:
    """Gives the model the steps as submodules, called as their folders are; returns what runs them.

    Raises InputError for a step that is not known, or whose settings are missing.
    """
    require_hidden_states(checkpoint)
    listed = entries(checkpoint)
    names = [entry.name for entry in listed]
    for entry in listed:
        if entry.kind not in STEPS:
            raise _refused(checkpoint, entry)
        model.add_module(entry.name, STEPS[entry.kind](entry, _settings(checkpoint, entry), dtype).eval())

    def finish(outputs: Tensors, inputs: Tensors) -> dict[str, Tensor]:
        hidden = outputs[HIDDEN]
        features = {MASK: torch.ones(hidden.shape[:2], dtype=torch.int64), **inputs, TOKENS: hidden}
        for name in names:
            features = model.get_submodule(name)(features)
        made = {name: value for name, value in features.items() if name not in (MASK, *inputs)}
        return {HIDDEN: hidden, **{name: value for name, value in made.items() if value is not hidden}}

    return finish


def needs_prompt_length(checkpoint: Checkpoint) -> bool:
    """Whether a pooling leaves out the tokens of the prompt, so that the graph must be told how many these are."""
    poolings = [entry for entry in entries(checkpoint) if entry.kind == "Pooling"]
    return any(not _settings(checkpoint, entry).get("include_prompt", True) for entry in poolings)


def with_steps(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the weights of the steps, each under its step's name; raises InputError for a pickle."""
    tensors = dict(checkpoint.tensors)
    for entry in entries(checkpoint):
        file = checkpoint.path / entry.path / SINGLE_NAME
        if file.is_file():
            stored = {f"{entry.name}.{name}": tensor for name, tensor in read_file(file).items()}
            tensors |= {name: replace(tensor, name=name) for name, tensor in stored.items()}
        elif (file.parent / PICKLE_NAME).is_file():
            raise refuse_pickle(file.parent, PICKLE_NAME)
    return replace(checkpoint, tensors=tensors)


def load_steps(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Fills the attached steps with the checkpoint's weights; raises InputError for one that is missing."""
    stored = with_steps(checkpoint).tensors
    for entry in entries(checkpoint):
        for name, parameter in model.get_submodule(entry.name).named_parameters():
            full = f"{entry.name}.{name}"
            if full not in stored:
                raise InputError(f"{checkpoint.path / entry.path} has no tensor {name!r}; download the folder again.")
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(stored[full].read().astype("float32")))


def _refused(checkpoint: Checkpoint, entry: Entry, what: str = "lists") -> InputError:
    place = f" in {entry.path}" if entry.path else ""
    return InputError(
        f"{MODULES_FILE} of {checkpoint.path} {what} {entry.kind}{place}; truecast knows {TRANSFORMER} in the folder "
        f"itself, and behind it {', '.join(STEPS)}: take the model alone with --task {FEATURES}."
    )


def _settings(checkpoint: Checkpoint, entry: Entry) -> Mapping[str, Any]:
    name = f"{entry.path}/config.json"
    if name in checkpoint.side_files:
        settings: Mapping[str, Any] = json.loads(checkpoint.side_files[name]())
        return settings
    if entry.kind in ("Normalize", "Dropout"):  # older versions wrote no settings for them
        return {}
    raise InputError(f"{checkpoint.path} has no {name}, which {MODULES_FILE} names; download the folder again.")


class Pooling(nn.Module):
    """One vector of a text's tokens: each mode's, concatenated."""

    def __init__(self, entry: Entry, settings: Mapping[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.modes = _modes(entry, settings)
        self.include_prompt = bool(settings.get("include_prompt", True))

    def forward(self, features: Tensors) -> dict[str, Tensor]:
        """The same features with `sentence_embedding`."""
        tokens, mask = features[TOKENS], features[MASK]
        first = _first_index(mask)
        counted = mask
        if not self.include_prompt and PROMPT in features:
            begin = first + features[PROMPT]
            counted = torch.where(_positions(mask) < begin.unsqueeze(1), 0, mask)
        pooled = [POOLINGS[mode](tokens, counted, first) for mode in self.modes]
        return {**features, SENTENCE: torch.cat(pooled, dim=-1) if len(pooled) > 1 else pooled[0]}


def _modes(entry: Entry, settings: Mapping[str, Any]) -> list[str]:
    """The modes that are switched on: by name, or by the older settings, in sentence-transformers' order."""
    named = settings.get("pooling_mode")
    if named is None:
        named = [mode for key, mode in OLDER_MODES.items() if settings.get(key)] or ["mean"]
    modes = [named] if isinstance(named, str) else list(named)
    if unknown := [mode for mode in modes if mode not in POOLINGS]:
        raise InputError(
            f"The step {entry.path} pools by {unknown[0]!r}; truecast knows {', '.join(POOLINGS)}: take the model "
            f"alone with --task {FEATURES}."
        )
    return modes


def _positions(mask: Tensor) -> Tensor:
    return torch.arange(mask.shape[1], device=mask.device).unsqueeze(0)


def _first_index(mask: Tensor) -> Tensor:
    """The first position that counts, [batch]; 0 where none does."""
    first = torch.where(mask != 0, _positions(mask), NOWHERE).amin(1)
    return torch.where(first < NOWHERE, first, 0)


def _wide(tokens: Tensor) -> Tensor:
    """Floats of 16 bits as float32: what sums are made in."""
    return tokens.to(torch.float32) if tokens.dtype in (torch.float16, torch.bfloat16) else tokens


def _at(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens.gather(1, index.reshape(-1, 1, 1).expand(-1, 1, tokens.shape[-1])).squeeze(1)


def _averaged(tokens: Tensor, weights: Tensor, root: bool = False) -> Tensor:
    """The sum of the tokens by their weights [batch, length, 1], over the sum of these or its root."""
    total = weights.sum(1).clamp(min=LEAST_COUNT)
    return ((_wide(tokens) * weights).sum(1) / (total.sqrt() if root else total)).to(tokens.dtype)


def _counts(tokens: Tensor, mask: Tensor) -> Tensor:
    return mask.unsqueeze(-1).to(_wide(tokens).dtype)


def _mean(tokens: Tensor, mask: Tensor, first: Tensor) -> Tensor:
    return _averaged(tokens, _counts(tokens, mask))


def _mean_root(tokens: Tensor, mask: Tensor, first: Tensor) -> Tensor:
    return _averaged(tokens, _counts(tokens, mask), root=True)


def _weighted(tokens: Tensor, mask: Tensor, first: Tensor) -> Tensor:
    """Weights 1, 2, … from the text's first token on."""
    places = (_positions(mask) - first.unsqueeze(1) + 1).unsqueeze(-1)
    return _averaged(tokens, _counts(tokens, mask) * places.to(_wide(tokens).dtype))


def _largest(tokens: Tensor, mask: Tensor, first: Tensor) -> Tensor:
    return tokens.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(1)


def _first(tokens: Tensor, mask: Tensor, first: Tensor) -> Tensor:
    return _at(tokens, _first_index(mask))


def _last(tokens: Tensor, mask: Tensor, first: Tensor) -> Tensor:
    """The last token that counts; zeros where none does."""
    index = torch.where(mask != 0, _positions(mask), 0).amax(1)
    return _at(tokens, index) * mask.gather(1, index.unsqueeze(1)).to(tokens.dtype)


POOLINGS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _largest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_root,
    "weightedmean": _weighted,
    "lasttoken": _last,
}
"""(tokens [batch, length, width], mask [batch, length], first position [batch]) → [batch, width], by mode."""
OLDER_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class Dense(nn.Module):
    """A linear layer with an activation, and a residual where the settings say so; PyLate's takes token embeddings."""

    def __init__(self, entry: Entry, settings: Mapping[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        narrow, wide = int(settings["in_features"]), int(settings["out_features"])
        self.linear = nn.Linear(narrow, wide, bias=bool(settings.get("bias", True)), dtype=dtype)
        self.activation = _activation(entry, settings)
        self.has_residual = bool(settings.get("use_residual", False))
        if self.has_residual and narrow != wide:
            self.residual = nn.Linear(narrow, wide, bias=False, dtype=dtype)
        if entry.type.startswith("pylate."):
            self.taken = self.given = TOKENS
        else:
            self.taken, self.given = _ends(settings)

    def forward(self, features: Tensors) -> dict[str, Tensor]:
        """The same features with its own."""
        x = features[self.taken]
        y = self.activation(self.linear(x))
        if self.has_residual:
            y = y + (self.residual(x) if hasattr(self, "residual") else x)
        return {**features, self.given: y}


def _ends(settings: Mapping[str, Any]) -> tuple[str, str]:
    """The names of the features that a step takes and gives."""
    taken = str(settings.get("module_input_name") or SENTENCE)
    return taken, str(settings.get("module_output_name") or taken)


def _activation(entry: Entry, settings: Mapping[str, Any]) -> nn.Module:
    """torch's class of the name in the settings, Tanh where there is none."""
    named = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    if named is None:
        return nn.Identity()
    made = getattr(nn, str(named).rpartition(".")[2], None)
    if not str(named).startswith("torch.nn.") or not isinstance(made, type) or not issubclass(made, nn.Module):
        raise InputError(
            f"The step {entry.path} has the activation {named!r}, which is none of torch.nn; take the model alone "
            f"with --task {FEATURES}."
        )
    activation: nn.Module = made()
    return activation


class LayerNorm(nn.Module):
    """A layer norm of the sentence's vector."""

    def __init__(self, entry: Entry, settings: Mapping[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(int(settings["dimension"]), dtype=dtype)

    def forward(self, features: Tensors) -> dict[str, Tensor]:
        """The same features with the vector normalised."""
        return {**features, SENTENCE: self.norm(features[SENTENCE])}


class Normalize(nn.Module):
    """Vectors of length 1; a feature that is not there stays away."""

    def __init__(self, entry: Entry, settings: Mapping[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.taken, self.given = _ends(settings)

    def forward(self, features: Tensors) -> dict[str, Tensor]:
        """The same features with its own."""
        if self.taken not in features:
            return dict(features)
        return {**features, self.given: nn.functional.normalize(features[self.taken], p=2.0, dim=-1)}


class Dropout(nn.Module):
    """Nothing, where nobody trains."""

    def __init__(self, entry: Entry, settings: Mapping[str, Any], dtype: torch.dtype) -> None:
        super().__init__()

    def forward(self, features: Tensors) -> dict[str, Tensor]:
        """The same features."""
        return dict(features)


STEPS: Mapping[str, Callable[[Entry, Mapping[str, Any], torch.dtype], nn.Module]] = {
    step.__name__: step for step in (Pooling, Dense, LayerNorm, Normalize, Dropout)
}
