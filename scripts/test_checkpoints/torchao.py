"""Makes tests/data/torchao-*: tiny models quantized by torchao and saved by transformers, with its decoded weights.

Run from the repository's root, in an environment with torchao 0.18.0, transformers 5.23.0 and torch 2.13.0 (CPU):

    python -m scripts.test_checkpoints.torchao

The oracle is each class's own `dequantize` into float32; `IntxUnpackedToInt8Tensor` has no such argument, so the
`dequantize_affine` that it calls is called with a float32 output.

The two int4 classes cannot be made on a CPU: their codes come from torchao's quantizing functions, are packed here as
torchao packs them for other devices, and are saved by torchao's own writer. Their oracles are `dequantize_affine` and
the function that torchao's GPTQ takes as the meaning of an `Int4Tensor`, which has no `dequantize`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

import torch
import torchao
import transformers
from safetensors.torch import load_file, save_file
from scripts.test_checkpoints.oracle_files import DATA, base_model, complete, save_checkpoint, tiny_case
from torch import nn
from torchao.prototype.gptq.api import _int4_row_dequantize_zp, _int4_row_quantize_zp_precomputed_qparams
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import (
    Float8Tensor,
    Float8WeightOnlyConfig,
    FqnToConfig,
    Int4PlainInt32Tensor,
    Int4Tensor,
    Int8Tensor,
    Int8WeightOnlyConfig,
    IntxUnpackedToInt8Tensor,
    IntxWeightOnlyConfig,
    MappingType,
    PerAxis,
    PerGroup,
    PerTensor,
    choose_qparams_affine,
    dequantize_affine,
    quantize_affine,
)


def intx(bits: int, group: int | None, mapping: MappingType = MappingType.ASYMMETRIC) -> IntxWeightOnlyConfig:
    """Codes of some bits in groups, or with one scale a row."""
    granularity = PerAxis(0) if group is None else PerGroup(group)
    return IntxWeightOnlyConfig(getattr(torch, f"int{bits}"), granularity, mapping)


INTX = FqnToConfig(
    {
        "re:.*layers.0.*q_proj": intx(4, 32, MappingType.SYMMETRIC),
        "re:.*layers.0.*k_proj": intx(3, 32),
        "re:.*layers.0.*v_proj": intx(2, 16),
        "re:.*layers.0.*o_proj": intx(1, 32),
        "re:.*layers.0.*gate_proj": intx(5, 64),
        "re:.*layers.0.*up_proj": intx(6, None),
        "re:.*layers.0.*down_proj": intx(7, 32),
        "re:.*layers.1.*q_proj": intx(8, 32),
        "re:.*layers.1.*down_proj": intx(8, None, MappingType.SYMMETRIC),
        "_default": intx(4, 32),
    }
)
INT8 = FqnToConfig(
    {
        "re:.*layers.0.*q_proj": Int8WeightOnlyConfig(version=2, granularity=PerGroup(32)),
        "re:.*layers.0.*down_proj": Int8WeightOnlyConfig(version=2, granularity=PerTensor()),
        "_default": Int8WeightOnlyConfig(version=2),
    }
)

CHECKPOINTS: Mapping[str, Mapping[str, Any]] = {
    "torchao-int8": {"quant_type": INT8},
    "torchao-intx": {"quant_type": INTX},
    "torchao-float8": {"quant_type": Float8WeightOnlyConfig(version=2)},
}


INT4_GROUP = 32
INT4_CONFIG = {"_type": "Int4WeightOnlyConfig", "_version": 2, "_data": {"group_size": INT4_GROUP}}


def decoded(weight: torch.Tensor) -> torch.Tensor:
    """A weight [out, in] in float32, by torchao itself."""
    if isinstance(weight, IntxUnpackedToInt8Tensor):
        arguments = (weight.qdata, weight.block_size, weight.scale, weight.zero_point, torch.int8)
        return dequantize_affine(*arguments, output_dtype=torch.float32)
    return weight.dequantize(torch.float32)


def nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Codes [out, in] two a byte, the first in the low bits, as uint8."""
    low, high = codes[:, ::2].to(torch.int32) & 15, codes[:, 1::2].to(torch.int32) & 15
    return (high << 4 | low).to(torch.uint8)


def int4_added(weight: torch.Tensor) -> tuple[Int4Tensor, torch.Tensor]:
    """An `Int4Tensor`, whose zero point is added, and its float32 values."""
    chunks = weight.float().reshape(weight.shape[0], -1, INT4_GROUP)
    low, high = chunks.amin(-1), chunks.amax(-1)
    scale = ((high - low).clamp(min=1e-6) / 15).t().contiguous().to(weight.dtype)
    zero = (low.t() + 8 * scale.float()).contiguous().to(weight.dtype)
    codes = _int4_row_quantize_zp_precomputed_qparams(weight, scale.float(), zero.float(), INT4_GROUP)
    values = _int4_row_dequantize_zp(codes, scale.float(), zero.float(), INT4_GROUP)
    block = [1, INT4_GROUP]
    return Int4Tensor(nibbles(codes).view(torch.int8), scale, zero, block, weight.shape), values


def int4_plain(weight: torch.Tensor) -> tuple[Int4PlainInt32Tensor, torch.Tensor]:
    """An `Int4PlainInt32Tensor` as XPUs have it, and its float32 values."""
    block = (1, INT4_GROUP)
    asymmetric = MappingType.ASYMMETRIC
    bounds = {"quant_min": 0, "quant_max": 15}
    scale, zero = choose_qparams_affine(
        weight, asymmetric, block, torch.int32, **bounds, eps=1e-6, zero_point_dtype=torch.int32
    )
    codes = quantize_affine(weight, block, scale, zero, torch.int32, **bounds)
    values = dequantize_affine(codes, block, scale, zero, torch.int32, **bounds, output_dtype=torch.float32)
    scale, zero = (part.reshape(weight.shape[0], -1).t().contiguous() for part in (scale, zero))
    packed = nibbles(codes).view(torch.int32)
    return Int4PlainInt32Tensor(packed, scale, zero.to(torch.int8), [*block], weight.shape), values


def make_int4(name: str) -> None:
    """A checkpoint whose first layer is of one int4 class and whose second is of the other."""
    with base_model(tiny_case(name, "bfloat16")) as base:
        tensors, weights = load_file(base / "model.safetensors"), {}
        for key in [key for key in tensors if key.endswith("_proj.weight")]:
            make = int4_added if ".layers.0." in key else int4_plain
            tensors[key], weights[key] = make(tensors[key])
        config = json.loads((base / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "torchao", "quant_type": {"default": INT4_CONFIG}}
        folder = DATA / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        stored, metadata = flatten_tensor_state_dict(tensors)
        save_file(stored, folder / "model.safetensors", {"format": "pt", **metadata})
        complete(folder, base, weights, {"torchao": torchao.__version__})


def main() -> None:
    """Makes all of them."""
    make_int4("torchao-int4")
    kinds = (Float8Tensor, Int8Tensor, IntxUnpackedToInt8Tensor)
    for name, settings in CHECKPOINTS.items():
        with base_model(tiny_case(name, "bfloat16")) as base:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                base,
                quantization_config=transformers.TorchAoConfig(**settings),
                device_map="cpu",
                dtype=torch.bfloat16,
            )
            modules = {key: module for key, module in model.named_modules() if isinstance(module, nn.Linear)}
            found = {key: module.weight for key, module in modules.items() if isinstance(module.weight, kinds)}
            weights = {f"{key}.weight": decoded(weight) for key, weight in found.items()}
            save_checkpoint(name, base, model, weights, {"torchao": torchao.__version__})


if __name__ == "__main__":
    main()
