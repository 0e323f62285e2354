"""Adapters of PEFT's kind LORA: a folder of small tensors that are added to the weights of a base model.

Data flow: adapter_config.json and adapter_model.safetensors → `Adapter`: for every weight that it changes, the changes
in the order in which they are made. A change makes a `StoredTensor` of another one; its rows are added up when they are
read: W + scale · B · A, in float32.

Names and formulas are those of the peft library, https://github.com/huggingface/peft (tuners/lora).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from truecast.checkpoint.model import Array, Reader, StoredTensor
from truecast.checkpoint.pickles import PICKLE_SUFFIXES
from truecast.checkpoint.safetensors_format import read_file
from truecast.errors import InputError

ADAPTER_CONFIG, ADAPTER_NAME = "adapter_config.json", "adapter_model.safetensors"
KIND = "LORA"
PREFIX = "base_model.model."
"""What peft writes in front of the names of the base model."""
RANK, ALPHA = 8, 8
"""peft's own defaults."""
ALL_LINEAR = "all-linear"
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the weights of the base as they are; others (PiSSA, OLoRA) change them."""
READ = frozenset(
    {
        *(
            "r",
            "lora_alpha",
            "use_rslora",
            "use_dora",
            "rank_pattern",
            "alpha_pattern",
            "init_lora_weights",
            "peft_type",
        ),
        *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"),
    }
)
"""Settings that are heeded here."""
NEEDLESS = frozenset(
    {
        *("base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "peft_version"),
        *("lora_dropout", "bias", "lora_bias", "fan_in_fan_out", "megatron_core", "qalora_group_size"),
        *("eva_config", "loftq_config", "runtime_config", "ensure_weight_tying"),
    }
)
"""Settings of training, or that the tensors themselves show."""
WAY_OUT = "merge it with peft (PeftModel.from_pretrained(…).merge_and_unload().save_pretrained(FOLDER)) and give that"

LOW_RANK = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(\.default)?(\.weight)?$"
)
BIAS = re.compile(r"(?P<module>.+)\.lora_B(\.default)?\.bias$")
WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save\.default|modules_to_save)(?=\.[^.]+$)")


class Change(Protocol):
    """What an adapter does to one parameter."""

    def onto(self, base: StoredTensor, transposed: bool) -> StoredTensor:
        """The changed tensor; `transposed` says that a matrix is held as [in, out]. Raises InputError for a misfit."""
        ...


@dataclass(frozen=True)
class Whole:
    """A parameter that the adapter brings whole; `copied` says that peft trained a copy of its module."""

    tensor: StoredTensor
    copied: bool = False

    def onto(self, base: StoredTensor, transposed: bool) -> StoredTensor:
        """The adapter's own tensor, under the base's name."""
        return replace(self.tensor, name=base.name, verbatim=False)


@dataclass(frozen=True)
class Shift:
    """A bias that is added to a bias."""

    tensor: StoredTensor
    scale: float

    def onto(self, base: StoredTensor, transposed: bool) -> StoredTensor:
        """Their sum."""
        if base.shape != self.tensor.shape:
            raise _misfit(self.tensor, base)
        shift = np.asarray(self.tensor.read(), np.float32) * np.float32(self.scale)

        def read(start: int, stop: int) -> Array:
            return np.asarray(base.rows(start, stop), np.float32) + shift[start:stop]

        return _changed(base, read, (self.tensor,))


@dataclass(frozen=True)
class LowRank:
    """scale · B · A is added to a weight.

    a: [rank, in, …]. b: [out, rank] or [out, rank, 1, …]. lookup: whether the weight is a table of embeddings, which
    is [in, out].
    magnitude: DoRA's, [out]: the sum is scaled to rows of these lengths.
    """

    a: StoredTensor
    b: StoredTensor
    scale: float
    lookup: bool = False
    magnitude: StoredTensor | None = None

    def onto(self, base: StoredTensor, transposed: bool) -> StoredTensor:
        """The sum; its rows are computed when they are read."""
        turned = self.lookup or transposed
        shape = (self.b.shape[0], *self.a.shape[1:])
        if self.a.shape[0] != math.prod(self.b.shape[1:]) or base.shape != (shape[::-1] if turned else shape):
            raise _misfit(self.a, base)
        if self.magnitude is not None and (turned or len(shape) > 2 or self.magnitude.size != shape[0]):
            raise InputError(
                f"{base.name} has an adapter of the kind DoRA, which is read for linear layers; {WAY_OUT}."
            )
        parts = tuple(part for part in (self.a, self.b, self.magnitude) if part is not None)
        return _changed(base, self._turned(base) if turned else self._rows(base), parts)

    def _rows(self, base: StoredTensor) -> Reader:
        def read(start: int, stop: int) -> Array:
            rows = _floats(self.b, start, stop).reshape(stop - start, -1)
            delta = rows @ _floats(self.a).reshape(self.a.shape[0], -1)
            values = _floats(base, start, stop) + np.float32(self.scale) * delta.reshape(-1, *base.shape[1:])
            if self.magnitude is None:
                return values
            lengths = np.linalg.norm(values, axis=1)
            scaled: Array = values * (_floats(self.magnitude).reshape(-1)[start:stop] / lengths)[:, None]
            return scaled

        return read

    def _turned(self, base: StoredTensor) -> Reader:
        def read(start: int, stop: int) -> Array:
            delta = _floats(self.a)[:, start:stop].T @ _floats(self.b).T
            return _floats(base, start, stop) + np.float32(self.scale) * delta

        return read


@dataclass(frozen=True)
class Adapter:
    """An adapter: `changes` by the names of the base model's parameters, in the order in which they are made."""

    path: Path
    changes: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it is made of."""
        return (self.path / ADAPTER_CONFIG, self.path / ADAPTER_NAME)


def open_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`; raises InputError when there is none, or one whose effect is not known."""
    settings = read_settings(folder)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in _read_tensors(folder).items()}
    return Adapter(folder, _changes(folder, settings, tensors))


def read_settings(folder: Path) -> Mapping[str, Any]:
    """The content of adapter_config.json; raises InputError when it is missing, or of an adapter of another kind."""
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise InputError(f"{folder} has no {ADAPTER_CONFIG}; give the folder that peft's save_pretrained() wrote.")
    try:
        settings = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); restore it from the adapter's source.") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} is not a JSON object; restore it from the adapter's source.")
    if settings.get("peft_type") != KIND:
        raise InputError(f"{folder} is an adapter of the kind {settings.get('peft_type')!r}, not {KIND}; {WAY_OUT}.")
    unknown = sorted(name for name, value in settings.items() if value and name not in READ | NEEDLESS)
    if unknown:
        raise InputError(f"{path} has the setting {unknown[0]}, whose effect is not known here; {WAY_OUT}.")
    if settings.get("init_lora_weights") not in PLAIN_STARTS:
        start = settings["init_lora_weights"]
        raise InputError(f"{path} says that training began by {start!r}, which changes the base's weights; {WAY_OUT}.")
    return settings


def _read_tensors(folder: Path) -> dict[str, StoredTensor]:
    path = folder / ADAPTER_NAME
    if path.is_file():
        return read_file(path)
    pickle = next(
        (file.name for file in sorted(folder.glob("adapter_model.*")) if file.suffix in PICKLE_SUFFIXES), None
    )
    if pickle is not None:
        raise InputError(
            f"{folder / pickle} is a pickle, which can run code when read, so truecast does not read it; "
            "if you trust it, load and save the adapter with peft, which writes safetensors."
        )
    raise InputError(
        f"{folder} has {ADAPTER_CONFIG} but no {ADAPTER_NAME}; download it, or move {ADAPTER_CONFIG} elsewhere to cast "
        "the base alone."
    )


def _changes(
    folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> dict[str, tuple[Change, ...]]:
    wholes: dict[str, Change] = {}
    parts: dict[str, dict[str, StoredTensor]] = {}
    shifts: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if (low := LOW_RANK.fullmatch(name)) is not None:
            parts.setdefault(low["module"], {})[low["part"]] = tensor
        elif (bias := BIAS.fullmatch(name)) is not None:
            shifts[bias["module"]] = tensor
        else:
            wholes[WRAPPED.sub("", name)] = Whole(tensor, _is_copied(name, settings))
    changes: dict[str, tuple[Change, ...]] = {name: (whole,) for name, whole in wholes.items()}
    for module, of_module in parts.items():
        changes[f"{module}.weight"] = (
            *changes.get(f"{module}.weight", ()),
            _low_rank(folder, settings, module, of_module),
        )
    for module, shift in shifts.items():
        _require_target(folder, settings, module)
        changes[f"{module}.bias"] = (*changes.get(f"{module}.bias", ()), Shift(shift, _scale(settings, module)))
    return changes


def _low_rank(folder: Path, settings: Mapping[str, Any], module: str, parts: Mapping[str, StoredTensor]) -> LowRank:
    _require_target(folder, settings, module)
    lookup = "embedding_A" in parts
    a, b = (parts.get(f"embedding_{side}" if lookup else side) for side in "AB")
    magnitude = parts.get("magnitude_vector")
    if a is None or b is None or len(parts) != 2 + (magnitude is not None):
        raise InputError(
            f"{folder / ADAPTER_NAME} has not both factors of {module} ({', '.join(sorted(parts))}); "
            "the adapter is incomplete, download or save it again."
        )
    if a.shape[0] != (rank := _rank(settings, module)):
        raise InputError(
            f"{a.name} in {folder / ADAPTER_NAME} has the rank {a.shape[0]}, but {ADAPTER_CONFIG} says {rank}; "
            "the two belong to different adapters."
        )
    if bool(settings.get("use_dora")) != (magnitude is not None):
        raise InputError(
            f"{folder / ADAPTER_CONFIG} and the tensors of {module} do not agree on whether it is of the kind DoRA; "
            "download or save the adapter again."
        )
    return LowRank(a, b, _scale(settings, module), lookup, magnitude)


def _scale(settings: Mapping[str, Any], module: str) -> float:
    """alpha / rank, or alpha / √rank (rsLoRA)."""
    alpha = _by_pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha", ALPHA))
    rank = _rank(settings, module)
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _rank(settings: Mapping[str, Any], module: str) -> int:
    return int(_by_pattern(settings.get("rank_pattern"), module, settings.get("r", RANK)))


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that the end of a module's name matches (`get_pattern_key` of peft)."""
    found = (value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", module))
    return next(found, default)


def _is_copied(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a tensor is of a module in modules_to_save: peft trained a copy of it, and left the base's as it was."""
    saved = settings.get("modules_to_save") or ()
    return any(re.match(rf"(^|.*\.){module}\.", name) for module in saved)


def _require_target(folder: Path, settings: Mapping[str, Any], module: str) -> None:
    """Raises InputError for a module that the settings do not name: peft would leave its tensors out."""
    targets, excluded = settings.get("target_modules") or (), settings.get("exclude_modules") or ()
    layers = settings.get("layers_to_transform")
    wanted = targets == ALL_LINEAR or _is_named(module, targets)
    if wanted and not _is_named(module, excluded) and (layers in (None, []) or _is_in(module, settings, layers)):
        return
    raise InputError(
        f"{folder / ADAPTER_NAME} has tensors for {module}, which {ADAPTER_CONFIG} does not name as a target; "
        "the two belong to different adapters."
    )


def _is_named(module: str, names: Any) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _is_in(module: str, settings: Mapping[str, Any], layers: Any) -> bool:
    patterns = settings.get("layers_pattern") or [r"[^.]*"]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = next((m for p in patterns if (m := re.match(rf"(?:^|.*?\.){p}\.(\d+)\.", module))), None)
    return found is not None and int(found[1]) in (layers if isinstance(layers, list) else [layers])


def _floats(tensor: StoredTensor, start: int = 0, stop: int | None = None) -> Array:
    return np.asarray(tensor.rows(start, stop), np.float32)


def _changed(base: StoredTensor, read: Reader, added: tuple[StoredTensor, ...]) -> StoredTensor:
    return replace(
        base,
        dtype=np.dtype(np.float32),
        stored_as=f"{base.stored_as} + LoRA",
        reader=read,
        verbatim=False,
        encoding=None,
        matrices=None,
        parts=(*(base.parts or (base,)), *added),
    )


def _misfit(tensor: StoredTensor, base: StoredTensor) -> InputError:
    return InputError(
        f"{tensor.name} in {tensor.location.path} has the shape {list(tensor.shape)}, which does not fit {base.name} "
        f"of the shape {list(base.shape)}; the adapter was made for another base model."
    )
