"""MXFP4 experts of gpt-oss: 4-bit floats in blocks of 32 that share a power of two, all experts in one tensor.

Data flow: `NAME_blocks` uint8 [experts, out, in / 32, 16] and `NAME_scales` uint8 [experts, out, in / 32] → `NAME`
[experts, in, out], the orientation of the transformers parameter.

The parameter is the transpose of what is stored, so its rows are no runs of codes: it is decoded. In bfloat16 that is
exact, because a 4-bit float times a power of two has two significant bits. What operators multiply with is what is
stored, so `matrices` has the codes: [experts · out, in].
"""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np

from truecast.checkpoint.bits import BYTE_BITS, unpack
from truecast.checkpoint.encoding import Codebook, Factor
from truecast.checkpoint.model import Array, Reader, StoredTensor
from truecast.checkpoint.schemes.grids import EXPONENTS
from truecast.checkpoint.schemes.minifloats import E2M1, MX_GROUP
from truecast.checkpoint.schemes.model import Module, Reading, Scheme, Settings

NAME = "MXFP4"
WEIGHTS = ("gate_up_proj", "down_proj")
BLOCKS, SCALES = "blocks", "scales"
BLOCK_BYTES = MX_GROUP // 2
FP4_BITS = 4
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

TILE = 64
"""Rows decoded at once: what is made of them stays in the nearest caches."""


def _pairs() -> Array:
    """uint32 [2^16]: two bfloat16 values, the even column first, for each exponent (high 8 bits) and byte (low 8)."""
    values = E2M1[unpack(np.arange(256, dtype=np.uint8)[:, None], FP4_BITS, 2)]
    with np.errstate(over="ignore"):
        scaled = (EXPONENTS[:, None, None] * values).astype(BFLOAT16)
    return scaled.view(np.uint32).reshape(-1)


PAIRS: Array = _pairs()


def _claims(module: Module, settings: Settings) -> bool:
    return any(f"{weight}_{BLOCKS}" in module.parts for weight in WEIGHTS)


def _read(module: Module, settings: Settings) -> Reading:
    present = [weight for weight in WEIGHTS if f"{weight}_{BLOCKS}" in module.parts]
    return Reading(tuple(_experts(module, weight) for weight in present))


def _experts(module: Module, weight: str) -> StoredTensor:
    blocks, scales = module[f"{weight}_{BLOCKS}"], module[f"{weight}_{SCALES}"]
    if blocks.dtype != np.uint8 or scales.dtype != np.uint8 or blocks.shape != (*scales.shape, BLOCK_BYTES):
        raise module.fail(
            f"has {weight}_{BLOCKS} of shape {list(blocks.shape)} ({blocks.stored_as}) and {weight}_{SCALES} of shape "
            f"{list(scales.shape)} ({scales.stored_as}), which are not the blocks of 32 4-bit floats and their scales"
        )
    experts, rows, groups = scales.shape

    def read(start: int, stop: int) -> Array:
        result = np.empty((stop - start, groups * MX_GROUP, rows), BFLOAT16)
        for place, expert in enumerate(range(start, stop)):
            decode_into(result[place], blocks.rows(expert, expert + 1)[0], scales.rows(expert, expert + 1)[0])
        return result

    return StoredTensor(
        name=f"{module.name}.{weight}",
        shape=(experts, groups * MX_GROUP, rows),
        dtype=BFLOAT16,
        stored_as=f"{NAME}, group {MX_GROUP}",
        location=blocks.location,
        reader=read,
        parts=(blocks, scales),
        matrices=_matrices(module, weight, blocks, scales),
    )


def _matrices(module: Module, weight: str, blocks: StoredTensor, scales: StoredTensor) -> StoredTensor:
    """The matrices of all experts as they are stored, one below the other."""
    experts, rows, groups = scales.shape
    factor = Factor(EXPONENTS.dtype, groups, lambda start, stop: np.take(EXPONENTS, flat(scales)(start, stop)))
    encoding = Codebook(FP4_BITS, E2M1, MX_GROUP, flat(blocks), (factor,))
    shape = experts * rows, groups * MX_GROUP
    stored_as = f"{NAME}, group {MX_GROUP}"
    whole = module.encoded(encoding, shape, stored_as, codes=f"{weight}_{BLOCKS}")
    return replace(whole, name=f"{module.name}.{weight}", parts=(blocks, scales))


def flat(stored: StoredTensor) -> Reader:
    """Rows of [experts, rows, …] as those of a matrix: [experts · rows, …]."""
    rows = stored.shape[1]

    def read(start: int, stop: int) -> Array:
        first, last = start // rows, -(-stop // rows)
        part = stored.rows(first, last)
        whole = part.reshape(part.shape[0] * rows, -1)
        return whole[start - first * rows : stop - first * rows]

    return read


def decode_into(result: Array, blocks: Array, scales: Array) -> None:
    """One expert: uint8 [out, groups, 16] and [out, groups] → bfloat16 [32 · groups, out]."""
    for start in range(0, len(scales), TILE):
        index = scales[start : start + TILE, :, None].astype(np.intp) << BYTE_BITS | blocks[start : start + TILE]
        values = np.take(PAIRS, index.reshape(len(index), -1)).view(np.uint16)
        result.view(np.uint16)[:, start : start + TILE] = values.T


SCHEME = Scheme(
    name=NAME,
    methods=frozenset({"mxfp4"}),
    marks=tuple(f"{weight}_{BLOCKS}" for weight in WEIGHTS),
    parts=frozenset(f"{weight}_{kind}" for weight in WEIGHTS for kind in (BLOCKS, SCALES)),
    claims=_claims,
    read=_read,
)
