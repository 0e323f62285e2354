"""compressed-tensors by its definition: w = (code - zero) · scale; codes are stored with half their range added.

Integers of b bits are a stream in int32 words, [N, ceil(K · b / 32)]; releases before 0.12 put 32 // b whole ones into
each word. Zero points lie along the rows in the same way. The NVFP4 scale of a tensor is a divisor.
Source: https://github.com/vllm-project/compressed-tensors (src/compressed_tensors/compressors).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from truecast.proof.operators import Array
from truecast.proof.source.floats import NV_GROUP, scaled
from truecast.proof.source.words import (
    E2M1,
    Parts,
    Stated,
    fields,
    floats,
    in_blocks,
    integers,
    small_floats,
    spread,
)

WORD = 32


def weight(module: str, parts: Parts, stated: Stated) -> Array:
    """The weight [out, in] in float32."""
    said, scale = _weights(module, stated), parts["weight_scale"]
    block = said.get("block_structure") or ((1, said["group_size"]) if (said.get("group_size") or 0) > 0 else None)
    if isinstance(block, str):
        block = block.split("x")
    known = None if block is None else (int(block[0]), int(block[1]))
    if "weight_packed" not in parts:
        stored = parts["weight"]
        return scaled(stored, scale, known) if stored.is_floating_point() else _bytes(parts, known)
    packed = parts["weight_packed"]
    if packed.dtype is torch.int32:
        return _words(parts, said, known)
    if scale.dtype is not torch.float8_e4m3fn:
        return small_floats(packed, scale)
    width = packed.shape[1] * 2
    divided = floats(scale) / floats(parts["weight_global_scale"]).reshape(1, 1)
    values: Array = E2M1[fields(integers(packed), 4, width)] * spread(divided, NV_GROUP, width)
    return values


def _weights(module: str, stated: Stated) -> Mapping[str, Any]:
    """What the configuration says of one module's weights: the last group that names it, else that of its class."""
    nested = stated.get("quantization_config") or {}
    groups = stated.get("config_groups") or nested.get("config_groups") or {}
    named = [g for g in groups.values() if any(_names(target, module) for target in g.get("targets") or ())]
    chosen = named or [g for g in groups.values() if "Linear" in (g.get("targets") or ())] or [{}]
    return chosen[-1].get("weights") or {}


def _names(target: str, module: str) -> bool:
    return bool(re.match(target[3:], module)) if target.startswith("re:") else target == module


def _bytes(parts: Parts, block: tuple[int, int] | None) -> Array:
    codes = integers(parts["weight"]).astype(np.float32)
    shape = (codes.shape[0], codes.shape[1])
    if "weight_zero_point" in parts:
        codes = codes - in_blocks(floats(parts["weight_zero_point"]), shape, block)
    values: Array = codes * in_blocks(floats(parts["weight_scale"]), shape, block)
    return values


def _words(parts: Parts, said: Mapping[str, Any], block: tuple[int, int] | None) -> Array:
    rows, width = (int(size) for size in integers(parts["weight_shape"]))
    words, scale = integers(parts["weight_packed"]), floats(parts["weight_scale"]).reshape(rows, -1)
    bits = int(said.get("num_bits") or words.shape[1] * WORD // width)
    whole = words.shape[1] != -(-width * bits // WORD)
    codes = _unpacked(words, bits, width, whole).astype(np.float32)
    groups = np.arange(width) // (block[1] if block is not None and scale.shape[1] > 1 else -(-width // scale.shape[1]))
    index = parts.get("weight_g_idx")
    if index is not None and int(index.min()) >= 0:
        groups = integers(index)
    zeros = parts.get("weight_zero_point")
    if zeros is None:
        points = np.full_like(scale, 1 << (bits - 1))
    elif zeros.dtype is torch.int8:
        points = floats(zeros).reshape(scale.shape) + np.float32(1 << (bits - 1))
    else:
        points = _unpacked(integers(zeros).T, bits, rows, whole).T.astype(np.float32)
    values: Array = (codes - points[:, groups]) * scale[:, groups]
    return values


def _unpacked(words: Array, bits: int, count: int, whole: bool) -> Array:
    """Codes of words, uint8 [rows, count]: of a stream, or as many as a word holds `whole`."""
    if not whole:
        return fields(words, bits, count)
    each = fields(np.ascontiguousarray(words)[..., None], bits, WORD // bits)
    return each.reshape(len(words), -1)[:, :count]
