"""Tiny mixtures of experts whose experts a library quantized one by one, written by hand in GPTQ's layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.conformance.cases import BY_NAME
from tests.tiny import tiny_checkpoint

BITS, GROUP, MIDDLE = 4, 32, 8
PER_WORD = 32 // BITS
SETTINGS = {"quant_method": "gptq", "bits": BITS, "group_size": GROUP, "desc_act": False, "sym": True}


def gptq(weight: np.ndarray) -> dict[str, np.ndarray]:
    """A weight [out, in] as qweight [in / 8, out], qzeros [groups, out / 8] (one less than the zero point), scales."""
    outputs, width = weight.shape
    groups = weight.reshape(outputs, -1, GROUP)
    scales = (np.abs(groups).max(-1) / (MIDDLE - 1)).astype(np.float16)
    codes = np.clip(np.rint(groups / scales[..., None].astype(np.float32)) + MIDDLE, 0, 15).astype(np.uint32)
    codes = codes.reshape(outputs, width).T
    zeros = np.full((width // GROUP, outputs), MIDDLE - 1, np.uint32)
    return {
        "qweight": words(codes, 0),
        "qzeros": words(zeros, 1),
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": (np.arange(width) // GROUP).astype(np.int32),
    }


def words(codes: np.ndarray, axis: int) -> np.ndarray:
    """Eight neighbours along an axis in one int32, the first in the lowest bits."""
    moved = np.moveaxis(codes, axis, -1)
    packed = moved.reshape(*moved.shape[:-1], -1, PER_WORD) << (BITS * np.arange(PER_WORD, dtype=np.uint32))
    result = np.bitwise_or.reduce(packed, -1).astype(np.uint32).view(np.int32)
    return np.ascontiguousarray(np.moveaxis(result, -1, axis))


def quantized_experts(folder: Path, chosen: Callable[[str], bool] = lambda name: True) -> Path:
    """A Qwen3-MoE whose chosen experts are quantized, and the rest floats."""
    case = BY_NAME["qwen3_moe"]
    tiny_checkpoint(replace(case, settings={**case.settings, "moe_intermediate_size": 64}), folder)
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if ".experts." in name and chosen(name):
            tensors |= {f"{module}.{part}": array for part, array in gptq(tensor).items()}
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": SETTINGS}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def split_experts(folder: Path, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> Path:
    """A tiny granitemoe as tools store it that quantize linear layers: those of every expert on their own."""
    source = tiny_checkpoint(BY_NAME["granitemoe"], folder)
    tensors = load_file(source / "model.safetensors")
    for key in [key for key in tensors if "put_linear" in key]:
        for index, matrix in enumerate(tensors.pop(key)):
            matrices = np.split(matrix, 2) if "input" in key else [matrix]
            of_key = names[:2] if "input" in key else names[2:]
            place = key.rpartition(".block_sparse_moe.")[0]
            for name, one in zip(of_key, matrices, strict=True):
                tensors[f"{place}.block_sparse_moe.experts.{index}.{name}.weight"] = np.ascontiguousarray(one)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    return source
