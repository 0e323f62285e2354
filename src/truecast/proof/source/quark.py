"""AMD Quark by its definition: integers of 4 and 8 bits, float8, and OCP MX floats of 4 and 6 bits.

Integers in groups are stored turned, [K, N], with scales and zero points [groups, N]; 4-bit ones eight to an int32,
in AWQ's order where `pack_method` is "reorder". Signed ones are two's complement.
Source: https://github.com/amd/Quark (quark/torch/utils/pack.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch

from truecast.proof.operators import Array
from truecast.proof.source.floats import scaled
from truecast.proof.source.words import Parts, Stated, fields, floats, in_blocks, integers, small_floats

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def weight(module: str, parts: Parts, stated: Stated) -> Array:
    """The weight [out, in] in float32."""
    stored, scale, zero = parts["weight"], parts["weight_scale"], parts.get("weight_zero_point")
    said = _weights(module, stated)
    if stored.is_floating_point():
        block = said.get("block_size") or ((1, said["group_size"]) if said.get("group_size") else None)
        return scaled(stored, scale, None if block is None else (int(block[0]), int(block[1])))
    if stored.dtype is torch.uint8 and scale.dtype in (torch.uint8, torch.float8_e8m0fnu):
        return small_floats(stored, scale)
    table = floats(scale)
    if stored.dtype is not torch.int32 and table.ndim < 2:
        codes = integers(stored).astype(np.float32)
        shape = (codes.shape[0], codes.shape[1])
        points = 0.0 if zero is None else in_blocks(floats(zero), shape)
        values: Array = (codes - points) * in_blocks(table, shape)
        return values
    signed = str(said.get("dtype", "")).startswith("int")
    plain = (stated.get("export") or {}).get("pack_method", "reorder") == "order"
    codes = _codes(stored, signed, plain)
    group = len(codes) // len(table)
    points = np.zeros_like(table) if zero is None else _codes(zero, signed, plain)
    turned: Array = (codes - np.repeat(points, group, axis=0)) * np.repeat(table, group, axis=0)
    return turned.T


def _codes(stored: torch.Tensor, signed: bool, plain: bool) -> Array:
    """Integers as they were before they were packed: float32 [rows, columns]."""
    words = integers(stored)
    if stored.dtype is not torch.int32:
        return words.astype(np.float32)
    nibbles = fields(words[..., None], 4, 8).astype(np.int16)
    if signed:
        nibbles = nibbles - 16 * (nibbles > 7)
    result = nibbles if plain else np.empty_like(nibbles)
    if not plain:
        result[..., list(ORDER)] = nibbles
    return result.reshape(len(words), -1).astype(np.float32)


def _weights(module: str, stated: Stated) -> Mapping[str, Any]:
    """What the configuration says of one module's weights."""
    layers = stated.get("layer_quant_config") or {}
    named = [layer for pattern, layer in layers.items() if fnmatchcase(module, pattern)]
    weight: Any = (named[0] if named else stated.get("global_quant_config") or {}).get("weight") or {}
    said: Mapping[str, Any] = weight[0] if isinstance(weight, list) else weight
    return said
