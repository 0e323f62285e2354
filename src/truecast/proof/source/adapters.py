"""An adapter of peft's kind LORA by its definition: W + alpha / r · B · A, or alpha / √r with rsLoRA.

DoRA scales the rows of the sum to given lengths. Tables of embeddings take the transpose of B · A. A bias that was
trained along is added with the same factor; whole tensors take the place of the base's. All is computed in float64.
Source: https://github.com/huggingface/peft (src/peft/tuners/lora/layer.py, dora.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from truecast.proof.source.definitions import Decoded

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
FACTORS = re.compile(r"(.+)\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(?:\.default)?(\.weight|\.bias)?")
WRAPPED = re.compile(r"\.(base_layer|modules_to_save\.default|modules_to_save)(?=\.[^.]+$)")


def adapter_of(folder: Path, given: Path | None) -> Path | None:
    """The folder of the adapter that belongs to a checkpoint: the one that was given, else one beside its weights."""
    return given or (folder if (folder / CONFIG).is_file() else None)


def with_adapter(state: Mapping[str, Decoded], folder: Path) -> dict[str, Decoded]:
    """The tensors of a base model, changed by the adapter in `folder`; those that it brings along are added."""
    settings, changed = json.loads((folder / CONFIG).read_bytes()), dict(state)
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        plain = name.removeprefix(PREFIX)
        found = FACTORS.fullmatch(plain)
        if found is None:
            plain = WRAPPED.sub("", plain)
            changed[_base(plain, state) or plain] = Decoded(partial(_same, tensor))
        else:
            kind = "bias" if found[3] == ".bias" else found[2].removeprefix("embedding_")
            factors.setdefault(found[1], {})[kind] = tensor.double()
            factors[found[1]] |= {"lookup": tensor} if "embedding" in found[2] else {}
    for module, parts in factors.items():
        factor = _factor(module, settings, len(parts["A"]))
        name = _base(f"{module}.weight", state) or f"{module}.weight"
        turned = "lookup" in parts or bool(settings.get("fan_in_fan_out"))
        changed[name] = Decoded(partial(_sum, changed[name], parts, factor, turned))
        if "bias" in parts:
            bias = _base(f"{module}.bias", state) or f"{module}.bias"
            changed[bias] = Decoded(partial(_shifted, changed[bias], parts["bias"] * factor))
    return changed


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _base(name: str, state: Mapping[str, Any]) -> str | None:
    """The base's name of a tensor, which may lack the prefix of a model with a head, or have one more."""
    alike = (other for other in state if other.endswith(f".{name}") or name.endswith(f".{other}"))
    return name if name in state else next(alike, None)


def _factor(module: str, settings: Mapping[str, Any], rank: int) -> float:
    patterns = settings.get("alpha_pattern") or {}
    own = [value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)]
    alpha = float(own[0] if own else settings["lora_alpha"])
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _sum(base: Decoded, parts: Mapping[str, Tensor], factor: float, turned: bool) -> Tensor:
    weight, delta = base[...].double(), factor * (parts["B"].flatten(1) @ parts["A"].flatten(1))
    if turned or (delta.shape != weight.shape and delta.T.shape == weight.shape):
        delta = delta.T
    result = weight + delta.reshape(weight.shape)
    if "magnitude_vector" in parts:
        result = result * (parts["magnitude_vector"].reshape(-1) / result.norm(dim=1))[:, None]
    return result.float()


def _shifted(base: Decoded, shift: Tensor) -> Tensor:
    return (base[...].double() + shift).float()
