"""Float8 with float scales, and NVIDIA's NVFP4, by their definitions: w = value · scale, whatever the scale is called.

`weight_scale_inv` is multiplied, too. Blocks are those of the configuration, else 128 x 128. NVFP4 of Model Optimizer
multiplies by both of its scales.
Sources: https://huggingface.co/deepseek-ai/DeepSeek-V3 (inference/kernel.py, weight_dequant),
https://github.com/NVIDIA/Model-Optimizer (modelopt/torch/quantization/qtensor).
"""

from __future__ import annotations

import torch

from truecast.proof.operators import Array
from truecast.proof.source.words import E2M1, Parts, Stated, fields, floats, in_blocks, integers, scales_of, spread

BLOCK, NV_GROUP = (128, 128), 16


def weight(module: str, parts: Parts, stated: Stated) -> Array:
    """The weight [out, in] in float32."""
    stored = parts["weight"]
    scale = parts["weight_scale_inv"] if "weight_scale_inv" in parts else parts["weight_scale"]
    if stored.dtype is torch.uint8:
        width = stored.shape[1] * 2
        both = floats(scale) * floats(parts["weight_scale_2"]).reshape(1, 1)
        values: Array = E2M1[fields(integers(stored), 4, width)] * spread(both, NV_GROUP, width)
        return values
    block = stated.get("weight_block_size") or stated.get("block_size")
    return scaled(stored, scale, (int(block[0]), int(block[1])) if block else None)


def scaled(stored: torch.Tensor, scale: torch.Tensor, block: tuple[int, int] | None) -> Array:
    """Float8 values times their scales, of which there are one, one a row, or one a block."""
    table, (rows, width) = scales_of(scale), tuple(stored.shape)
    if block is None and table.ndim == 2 and table.shape[0] not in (1, rows):
        block = BLOCK
    values: Array = floats(stored) * in_blocks(table, (rows, width), block)
    return values
