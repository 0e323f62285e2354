"""Makes tests/data/compressed-tensors-*: tiny models compressed by compressed-tensors' own classes.

Run from the repository's root, in an environment with compressed-tensors 0.20.0, transformers 5.23.0 and torch 2.13.0
(CPU):

    python -m scripts.test_checkpoints.compressed_tensors

Scales and zero points are those of each block's smallest and largest weight, by the library's `calculate_qparams`. The
oracle is each compressor's own `decompress` on scales in float32; for NVFP4 the two functions it consists of, because
the method itself rounds to bfloat16.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import compressed_tensors
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor, ModelCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams
from compressed_tensors.utils import get_direct_state_dict
from scripts.test_checkpoints.oracle_files import DATA, base_model, complete, tiny_case
from torch import nn
from torch.nn import functional

Weights = Mapping[str, Any]
NVFP4_LARGEST = 448.0 * 6.0
"""The largest float8 scale times the largest 4-bit float: what the largest weight becomes with the global scale."""


def integers(bits: int, group: int = 0, symmetric: bool = True) -> Weights:
    """Integers of `bits` with a scale for each `group` of columns, or for each row."""
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, **strategy}


def floats(bits: int, strategy: str, **more: Any) -> Weights:
    """Floats of `bits`."""
    return {"num_bits": bits, "type": "float", "symmetric": True, "strategy": strategy, **more}


def mx(bits: int) -> Weights:
    """OCP MX floats of `bits`: groups of 32 with a power of two."""
    return floats(bits, "group", group_size=32, scale_dtype="torch.uint8")


NVFP4 = floats(4, "tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn")
BLOCKS = floats(8, "block", block_structure=[128, 128])

# One layer of 144 columns: blocks of 128 leave an edge of 16.
EDGES = {"hidden_size": 144, "intermediate_size": 136, "num_hidden_layers": 1}

CHECKPOINTS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, tuple[str, Weights]]]] = {
    "compressed-tensors-integers": (
        {},
        {
            "re:.*q_proj": ("pack-quantized", integers(4, 32, symmetric=False)),
            "re:.*k_proj": ("pack-quantized", integers(4)),
            "re:.*v_proj": ("pack-quantized", integers(2, 16)),
            "re:.*o_proj": ("pack-quantized", integers(3, 32, symmetric=False)),
            "re:.*gate_proj": ("pack-quantized", integers(8, symmetric=False)),
            "re:.*up_proj": ("int-quantized", integers(8)),
            "re:.*0.mlp.down_proj": ("int-quantized", integers(8, symmetric=False)),
        },
    ),
    "compressed-tensors-floats": (
        {},
        {
            "re:.*q_proj": ("nvfp4-pack-quantized", NVFP4),
            "re:.*k_proj": ("mxfp4-pack-quantized", mx(4)),
            "re:.*v_proj": ("mxfp6-pack-quantized", mx(6)),
            "re:.*o_proj": ("mxfp8-quantized", mx(8)),
            "re:.*gate_proj": ("float-quantized", floats(8, "tensor")),
            "re:.*up_proj": ("float-quantized", floats(8, "channel")),
        },
    ),
    "compressed-tensors-blocks": (EDGES, {"Linear": ("float-quantized", BLOCKS)}),
}
"""Folder → the model's settings, and the targets with the format and the arguments of their weights."""


def set_scales(module: nn.Linear) -> None:
    """Gives an initialized module the scales and zero points of its weight's blocks."""
    args = module.quantization_scheme.weights
    smallest, largest = extremes(module.weight.data.float(), args)
    factor = None
    if args.strategy == "tensor_group":
        factor = torch.tensor([NVFP4_LARGEST / module.weight.abs().max().item()])
        module.weight_global_scale.data = factor
    scale, zero = calculate_qparams(smallest, largest, args, global_scale=factor)
    kept = module.weight_scale.dtype
    module.weight_scale.data = scale.to(kept).reshape(module.weight_scale.shape)
    module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype).reshape(module.weight_zero_point.shape)


def extremes(weight: torch.Tensor, args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest and largest weight of each block that shares a scale."""
    if args.strategy == "tensor":
        return weight.min(), weight.max()
    height, width = args.block_structure or (1, args.group_size or weight.shape[1])
    down, across = -weight.shape[0] % height, -weight.shape[1] % width
    filled = functional.pad(weight, (0, across, 0, down))
    blocks = filled.unflatten(1, (-1, width)).unflatten(0, (-1, height))
    return blocks.amin((1, 3)), blocks.amax((1, 3))


def decoded(state: Mapping[str, torch.Tensor], scheme: QuantizationScheme) -> torch.Tensor:
    """A module's weight [out, in] in float32 from its compressed tensors, by the library itself."""
    state = dict(state)
    if scheme.format == "nvfp4-pack-quantized":
        rows, columns = state["weight_packed"].shape
        return dequantize(
            unpack_fp4_from_uint8(state["weight_packed"], rows, columns * 2, dtype=torch.float32),
            scale=state["weight_scale"].float(),
            args=scheme.weights,
            global_scale=state["weight_global_scale"].float(),
            dtype=torch.float32,
        )
    if state["weight_scale"].dtype != torch.uint8:
        state["weight_scale"] = state["weight_scale"].float()
    return BaseCompressor.get_value_from_registry(scheme.format).decompress(state, scheme)["weight"]


def compress(name: str, shape: Mapping[str, Any], targets: Mapping[str, tuple[str, Weights]]) -> Path:
    """Writes tests/data/NAME."""
    folder = DATA / name
    shutil.rmtree(folder, ignore_errors=True)
    groups = {
        f"group_{i}": {"targets": [target], "format": format, "weights": dict(weights)}
        for i, (target, (format, weights)) in enumerate(targets.items())
    }
    with base_model(tiny_case(name, stored="bfloat16", **shape)) as base:
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        config = QuantizationConfig(config_groups=groups, ignore=["lm_head"], quantization_status="initialized")
        apply_quantization_config(model, config)
        modules = {key: m for key, m in model.named_modules() if getattr(m, "quantization_scheme", None) is not None}
        for module in modules.values():
            set_scales(module)
        compressor = ModelCompressor.from_pretrained_model(model)
        compressor.compress_model(model)
        weights = {
            f"{key}.weight": decoded(get_direct_state_dict(module), module.quantization_scheme)
            for key, module in modules.items()
        }
        model.save_pretrained(folder)
        compressor.update_config(str(folder))
        return complete(folder, base, weights, {"compressed-tensors": compressed_tensors.__version__})


def main() -> None:
    """Makes all of them."""
    for name, (shape, targets) in CHECKPOINTS.items():
        compress(name, shape, targets)


if __name__ == "__main__":
    main()
