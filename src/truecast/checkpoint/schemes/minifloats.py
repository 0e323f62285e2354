"""Weights stored as floats of 8, 6 or 4 bits with scales: codes into a table of the values that the bits stand for."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from truecast.checkpoint.bits import BYTE_BITS
from truecast.checkpoint.encoding import Codebook, Factors
from truecast.checkpoint.model import Array, StoredTensor
from truecast.checkpoint.schemes.grids import E4M3, E5M2, Block, grid
from truecast.checkpoint.schemes.model import Module
from truecast.checkpoint.schemes.parts import byte_rows
from truecast.checkpoint.schemes.words import widened

FLOAT8 = frozenset({E4M3, E5M2})
DEFAULT_BLOCKS: tuple[Block, ...] = ((128, 128), (1, 128))
"""Blocks of float8 where none are stated: those of DeepSeek's checkpoints, and of rows scaled on their own."""
MX_GROUP, NV_GROUP = 32, 16
"""Weights along a row that share a scale: OCP Microscaling Formats 1.0, section 5.2; NVIDIA's NVFP4."""


def _sign_and_magnitude(magnitudes: list[float]) -> Array:
    values = np.array(magnitudes, np.float32)
    return np.concatenate([values, -values])


E2M1: Array = _sign_and_magnitude([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""float32 [16]: what a 4-bit float stands for (OCP MX 1.0, E2M1); codes from 8 on are negative, code 8 is -0."""
E2M3: Array = _sign_and_magnitude(
    [eighth / 8 for eighth in range(8)]
    + [(1 + eighth / 8) * 2.0**exponent for exponent in range(3) for eighth in range(8)]
)
"""float32 [64]: what a 6-bit float stands for (OCP MX 1.0, E2M3); codes from 32 on are negative."""
E2M3_BITS = 6


def float8_table(tensor: StoredTensor) -> Array:
    """float32 [256]: what the bytes of a float8 tensor stand for, NaN included."""
    return np.arange(256, dtype=np.uint8).view(tensor.dtype).astype(np.float32)


def float8(
    module: Module, library: str, scale: str, stated: Collection[Block] = (), codes: str = "weight"
) -> StoredTensor:
    """The weight of a module with float8 codes [out, in] and scales on a grid in the part `scale`.

    Raises:
        InputError: the codes are no matrix, or the scales do not fit them.
    """
    stored = module[codes]
    shape = module.matrix(codes)
    scales = grid(module, scale, shape, stated)
    encoding = Codebook(BYTE_BITS, float8_table(stored), scales.group, byte_rows(stored), (scales.factor,))
    kind = "E4M3" if stored.dtype == E4M3 else "E5M2"
    return module.encoded(encoding, shape, f"{library} FP8 {kind}, {scales.words}".strip(), codes)


def float4(module: Module, name: str, codes: str, group: int, scales: Factors) -> StoredTensor:
    """The weight of a module with two E2M1 codes in a byte, uint8 [out, in / 2], the even column in the low bits.

    Raises:
        InputError: the codes are no matrix of bytes.
    """
    rows, columns = module.matrix(codes)
    encoding = Codebook(4, E2M1, group, byte_rows(module[codes]), scales)
    return module.encoded(encoding, (rows, columns * 2), f"{name}, group {group}", codes)


def float6(module: Module, name: str, codes: str, group: int, scales: Factors) -> StoredTensor:
    """The weight of a module with four E2M3 codes in three bytes, uint8 [out, in · 3 / 4], the lowest bits first.

    Raises:
        InputError: the codes are no matrix of bytes.
    """
    rows, columns = module.matrix(codes)
    shape = rows, columns * 4 // 3
    stored, table = byte_rows(module[codes]), np.zeros(1 << BYTE_BITS, np.float32)
    table[: len(E2M3)] = E2M3

    def read(start: int, stop: int) -> Array:
        return widened(stored(start, stop), E2M3_BITS, BYTE_BITS)[:, : shape[1]]

    return module.encoded(Codebook(BYTE_BITS, table, group, read, scales), shape, f"{name}, group {group}", codes)
