"""Adapter folders as peft writes them, made without peft: names, settings and shapes are those of its format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from truecast.checkpoint.model import Array

PREFIX = "base_model.model."
SETTINGS: Mapping[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "init_lora_weights": True, "bias": "none"}


def random_array(*shape: int, seed: int = 0) -> Array:
    """Normal values, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write_adapter(folder: Path, tensors: Mapping[str, Array], **settings: Any) -> Path:
    """A folder with tensors named as in the base model; their modules are the targets, unless `settings` has others."""
    folder.mkdir(exist_ok=True)
    targets = sorted({name.partition(".lora_")[0] for name in tensors if ".lora_" in name})
    content = {**SETTINGS, "target_modules": targets, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    save_file({PREFIX + name: tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def factors(module: str, outputs: int, inputs: int, rank: int = 4, seed: int = 0) -> dict[str, Array]:
    """Both factors of a module's low-rank change."""
    a, b = random_array(rank, inputs, seed=seed), random_array(outputs, rank, seed=seed + 1)
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
