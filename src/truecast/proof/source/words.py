"""Small helpers of the definitions: tensors as NumPy arrays, and fields of bits; slow and plain on purpose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truecast.proof.operators import Array

Parts = Mapping[str, Tensor]
"""The tensors of one module by what follows its name, as the safetensors library gives them."""
Stated = Mapping[str, Any]
"""What the configuration says of the quantization."""


def floats(tensor: Tensor) -> Array:
    """The values of a tensor, which float32 holds exactly."""
    array: Array = tensor.to(torch.float32).numpy()
    return array


def integers(tensor: Tensor) -> Array:
    """The values of a tensor of integers."""
    array: Array = tensor.contiguous().numpy()
    return array


def raw(tensor: Tensor) -> Array:
    """The bytes of a tensor one after the other: uint8 [n]."""
    array: Array = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return array


def fields(stored: Array, bits: int, count: int) -> Array:
    """The first `count` fields of `bits` in each row's bytes, the lowest bits of the first byte first: uint8."""
    ones = np.unpackbits(np.ascontiguousarray(stored).view(np.uint8), axis=-1, bitorder="little")
    result = np.zeros((*ones.shape[:-1], count), np.uint8)
    for place in range(bits):
        result |= ones[..., place : count * bits : bits] << np.uint8(place)
    return result


def spread(values: Array, group: int, width: int) -> Array:
    """Values of groups, [rows, groups], each for its `group` columns: [rows, width]."""
    return np.repeat(values, group, axis=1)[:, :width]


def in_blocks(scale: Array, shape: tuple[int, int], block: tuple[int, int] | None = None) -> Array:
    """Scales for each weight of `shape`: of all, of each row, or of each block (else: of even groups of columns)."""
    rows, width = shape
    if scale.size == 1:
        return np.broadcast_to(scale.reshape(1, 1), shape)
    table = scale.reshape(rows, -1) if scale.size == rows else scale
    high, wide = -(-rows // table.shape[0]), -(-width // table.shape[1])
    if block is not None:
        high, wide = (1 if len(table) == rows else block[0]), (block[1] if table.shape[1] > 1 else width)
    return np.repeat(np.repeat(table, high, axis=0)[:rows], wide, axis=1)[:, :width]


def scales_of(tensor: Tensor) -> Array:
    """Scales in float32: bytes are the exponents of powers of two."""
    return exponents(tensor) if tensor.dtype in (torch.uint8, torch.float8_e8m0fnu) else floats(tensor)


SIGNED_HALVES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = np.array([*SIGNED_HALVES, *(-value for value in SIGNED_HALVES)], np.float32)
"""What the codes of a 4-bit float stand for: OCP Microscaling Formats 1.0, section 5.3.3."""


E2M3 = np.array([m / 8 for m in range(8)] + [(1 + m / 8) * 2.0**e for e in range(3) for m in range(8)], np.float32)
"""The magnitudes of a 6-bit float, whose highest bit is its sign: OCP MX 1.0, section 5.3.2."""
MX = 32
"""Weights of a row that share a scale: OCP MX 1.0, section 5.2."""


def small_floats(stored: Tensor, scale: Tensor) -> Array:
    """Floats of 4 bits, or of 6 where the bytes of a row are three quarters of its columns, times powers of two."""
    scales, codes = exponents(scale), integers(stored)
    width = scales.shape[1] * MX
    if codes.shape[1] * 2 == width:
        values = E2M1[fields(codes, 4, width)]
    else:
        found = fields(codes, 6, width)
        values = E2M3[found & 31] * np.where(found > 31, np.float32(-1), np.float32(1))
    result: Array = values * np.repeat(scales, MX, axis=1)
    return result


def exponents(stored: Tensor) -> Array:
    """E8M0 scales, 2^(e - 127), in float32: OCP Microscaling Formats 1.0, section 5.4.1."""
    codes = raw(stored).reshape(stored.shape).astype(np.int32)
    values: Array = np.ldexp(np.float32(1), codes - 127).astype(np.float32)
    return values
