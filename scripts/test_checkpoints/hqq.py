"""Makes tests/data/hqq-*: tiny models whose linears hqq has quantized, one number of bits each.

Run from the repository's root, in an environment with hqq 0.2.8.post1 (built with DISABLE_CUDA=1), transformers 5.23.0
and torch 2.13.0 (CPU):

    python -m scripts.test_checkpoints.hqq

transformers refuses to run hqq on a CPU, so the linears are quantized by `HQQLinear` itself and saved as its
`state_dict` writes them. The oracle is `Quantizer.dequantize` in float32 on the stored scales and zero points.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer
from safetensors.torch import save_file
from scripts.test_checkpoints.oracle_files import DATA, base_model, complete, tiny_case
from tests.tiny import stored_model
from torch import nn

BITS: Mapping[str, tuple[float, ...]] = {
    "q_proj": (4, 8),
    "k_proj": (3, 4),
    "v_proj": (2, 6),
    "o_proj": (8, 3),
    "gate_proj": (1, 4),
    "up_proj": (1.58, 2),
    "down_proj": (5, 4),
}
"""Bits of each linear in the first and in the second layer."""

TOLERANCE = (
    "the tensor's reader: float32 values equal bit for bit; the encoding of axis 1, code * scale + (-zero) * scale: "
    "equal where scales are float16, else within 2 ulp of the largest of both terms and the weight"
)

CHECKPOINTS: Mapping[str, Mapping[str, Any]] = {
    # Rows of 112 end in the middle of a group of 64.
    "hqq-axis1": {"axis": 1, "group_size": 64, "stored": "float16", "intermediate_size": 112},
    "hqq-axis0": {"axis": 0, "group_size": 64, "stored": "bfloat16", "view_as_float": True},
    "hqq-axis1-group16": {"axis": 1, "group_size": 16, "stored": "float32", "view_as_float": True},
}


def quantized(linear: nn.Linear, nbits: float, dtype: torch.dtype, settings: Mapping[str, Any]) -> HQQLinear:
    """The linear as hqq quantizes it."""
    keys = ("axis", "group_size", "view_as_float")
    config = BaseQuantizeConfig(nbits=nbits, **{key: settings[key] for key in keys if key in settings})
    return HQQLinear(linear, config, compute_dtype=dtype, device="cpu", del_orig=False)


def decoded(layer: HQQLinear) -> torch.Tensor:
    """A layer's weight [out, in] in float32, by hqq itself."""
    floats = {key: layer.meta[key].to(torch.float32) for key in ("scale", "zero")}
    return Quantizer.dequantize(layer.W_q.data, {**layer.meta, **floats, "compute_dtype": torch.float32})


def save(folder: Path, base: Path, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> None:
    """Writes the folder as transformers' hqq integration does."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = json.loads((base / "config.json").read_text())
    parameters = {"nbits": 4, "group_size": settings["group_size"], "axis": settings["axis"]}
    config["quantization_config"] = {
        "quant_method": "hqq",
        "quant_config": {"weight_quant_params": parameters},
        "skip_modules": ["lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")


def main() -> None:
    """Makes all of them."""
    for name, settings in CHECKPOINTS.items():
        shape = {key: settings[key] for key in ("intermediate_size",) if key in settings}
        dtype = getattr(torch, settings["stored"])
        with base_model(tiny_case(name, settings["stored"], **shape)) as base:
            model = stored_model(base)
            layers = {
                key: quantized(module, BITS[key.rpartition(".")[2]][int(key.split(".")[2])], dtype, settings)
                for key, module in model.named_modules()
                if isinstance(module, nn.Linear) and key != "lm_head"
            }
            tensors = {key: value.to(dtype) for key, value in model.state_dict().items()}
            for key, layer in layers.items():
                del tensors[f"{key}.weight"]
                tensors |= {f"{key}.{part}": tensor.data for part, tensor in layer.state_dict().items()}
            del tensors["lm_head.weight"]
            save(DATA / name, base, tensors, settings)
            weights = {f"{key}.weight": decoded(layer) for key, layer in layers.items()}
            complete(DATA / name, base, weights, {"hqq": importlib.metadata.version("hqq")}, TOLERANCE)


if __name__ == "__main__":
    main()
