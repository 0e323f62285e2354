"""compressed-tensors, the format of llm-compressor: packed integers, bytes, and floats of 8, 6 and 4 bits.

Data flow: the parts of a module → their types tell the format → codes as they are stored, scales on a grid.

The tensors decide; config.json's `config_groups` only say what the tensors leave open: the width of codes that several
widths could fill, and the size of groups or blocks. Layouts are those of the library's compressors, version 0.20.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from truecast.checkpoint.encoding import Factor
from truecast.checkpoint.model import Array, StoredTensor
from truecast.checkpoint.schemes.attendants import ATTENDANTS, CACHE_PARTS, only_attendants, reading
from truecast.checkpoint.schemes.compressed_integers import packed_integers, signed_bytes
from truecast.checkpoint.schemes.grids import E4M3, EXPONENT_TYPES, Block, grid
from truecast.checkpoint.schemes.minifloats import (
    DEFAULT_BLOCKS,
    FLOAT8,
    MX_GROUP,
    NV_GROUP,
    float4,
    float6,
    float8,
)
from truecast.checkpoint.schemes.model import Module, Reading, Scheme, Settings
from truecast.errors import InputError

NAME = "compressed-tensors"
METHODS = frozenset({NAME})
SPARSE_PARTS = frozenset({"bitmask", "compressed", "row_offsets", "meta", "scale_packed"})
"""Parts of the 2:4 sparse formats, which the library itself no longer reads."""
FORMATS = frozenset(
    {"dense", "mixed-precision", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized"}
    | {"nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized", "mxfp8-quantized"}
)
"""Names of formats that are read; whatever their name, the tensors decide."""
FUSED_LOCATIONS = frozenset({"weight_input", "weight_output"})
"""Where a transform is already multiplied into the stored weights; anywhere else the model computes it as it runs."""


@dataclass(frozen=True)
class Stated:
    """What the `config_groups` say of weights: widths of codes in bits, and shapes of blocks that share a scale."""

    bits: frozenset[int]
    blocks: tuple[Block, ...]


def stated(settings: Settings) -> Stated:
    """All widths and block shapes that config.json names; which module has which is left to the tensors."""
    weights = [dict(group.get("weights") or {}) for group in _groups(settings)]
    bits = frozenset(int(weight["num_bits"]) for weight in weights if weight.get("num_bits"))
    return Stated(bits, tuple(dict.fromkeys(block for weight in weights for block in _blocks(weight))))


def _groups(settings: Settings) -> Iterator[Mapping[str, Any]]:
    quantization = settings.quantization
    nested = quantization.get("quantization_config") or {}
    groups = quantization.get("config_groups") or nested.get("config_groups") or {}
    yield from (group for group in groups.values() if isinstance(group, dict))


def _blocks(weight: Mapping[str, Any]) -> Iterator[Block]:
    if (weight.get("group_size") or 0) > 0:
        yield 1, int(weight["group_size"])
    block = weight.get("block_structure")
    if block:
        height, width = block.split("x") if isinstance(block, str) else block
        yield int(height), int(width)


def _claims(module: Module, settings: Settings) -> bool:
    parts = module.parts
    weight = parts.get("weight")
    method = settings.quantization.get("quant_method")
    if "weight_packed" in parts or {"bitmask", "compressed"} <= set(parts):
        return True
    if weight is None or "weight_scale" not in parts:
        return only_attendants(module, settings, METHODS)
    return weight.dtype in FLOAT8 or weight.dtype == np.int8 or method in METHODS


def _read(module: Module, settings: Settings) -> Reading:
    _require_known(module, settings)
    return reading(module, lambda module: _weight(module, stated(settings)))


def _require_known(module: Module, settings: Settings) -> None:
    """Refuses what the tensors of one module do not show: other formats, and transforms of activations."""
    quantization = settings.quantization
    formats = {quantization.get("format"), *(group.get("format") for group in _groups(settings))} - {None}
    if SPARSE_PARTS & set(module.parts) or any(str(name).startswith(("marlin", "sparse")) for name in formats):
        raise module.fail(
            "is stored in a 2:4 sparse format, which is not read", "give the dense checkpoint it was made from"
        )
    if unknown := sorted(map(str, formats - FORMATS)):
        raise InputError(
            f"{settings.folder} has weights in the {NAME} format {unknown[0]!r}, which is not known; known are "
            f"{', '.join(sorted(FORMATS))}."
        )
    transforms = (quantization.get("transform_config") or {}).get("config_groups") or {}
    places = {apply.get("location") for group in transforms.values() for apply in group.get("apply", ())}
    if online := sorted(map(str, places - FUSED_LOCATIONS)):
        raise InputError(
            f"{settings.folder} transforms values as the model runs (transform_config, location {online[0]}), which is "
            "not read; give a checkpoint without transforms of activations."
        )


def _weight(module: Module, known: Stated) -> StoredTensor:
    if "weight_packed" in module.parts:
        if module["weight_packed"].dtype == np.int32:
            return packed_integers(module, NAME, known.bits, known.blocks)
        return _small_floats(module)
    weight = module["weight"]
    if weight.dtype in FLOAT8:
        is_mx = module["weight_scale"].dtype in EXPONENT_TYPES
        return float8(module, NAME, "weight_scale", [(1, MX_GROUP)] if is_mx else known.blocks or DEFAULT_BLOCKS)
    if weight.dtype == np.int8:
        return signed_bytes(module, NAME, known.blocks)
    raise module.fail(
        f"holds {weight.stored_as} values with a scale beside them, so it was never compressed",
        "save the model compressed, or without quantization",
    )


def _small_floats(module: Module) -> StoredTensor:
    """Floats of 4 or 6 bits: the type of the scale tells NVIDIA's groups of 16 from the 32 of OCP MX."""
    if module.get("weight_zero_point") is not None:
        raise module.fail("has zero points for floats of a few bits, which is not known", "give the float checkpoint")
    rows, columns = module.matrix("weight_packed")
    if module["weight_scale"].dtype == E4M3:
        grid(module, "weight_scale", (rows, columns * 2), [(1, NV_GROUP)])
        return float4(module, f"{NAME} NVFP4", "weight_packed", NV_GROUP, (_divided(module),))
    if columns == MX_GROUP // 2 * (across := module["weight_scale"].shape[-1]):
        scales = grid(module, "weight_scale", (rows, columns * 2), [(1, MX_GROUP)])
        return float4(module, f"{NAME} MXFP4", "weight_packed", MX_GROUP, (scales.factor,))
    scales = grid(module, "weight_scale", (rows, across * MX_GROUP), [(1, MX_GROUP)])
    return float6(module, f"{NAME} MXFP6", "weight_packed", MX_GROUP, (scales.factor,))


def _divided(module: Module) -> Factor:
    """The float8 scales divided by the one scale of the tensor, in float32 as the library divides.

    One factor, because a division is no product: multiplying with the reciprocal rounds differently.
    """
    scale, divisor = module["weight_scale"], module["weight_global_scale"]
    if divisor.size != 1:
        raise module.fail(f"has a weight_global_scale of shape {list(divisor.shape)}, and one number is expected")

    def read(start: int, stop: int) -> Array:
        return scale.rows(start, stop).astype(np.float32) / divisor.read().astype(np.float32).reshape(1, 1)

    return Factor(np.dtype(np.float32), scale.shape[1], read)


SCHEME = Scheme(
    name=NAME,
    methods=METHODS,
    marks=("weight_packed", "weight_scale", "bitmask", *CACHE_PARTS),
    parts=frozenset(
        {"weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"}
        | {"weight_global_scale"}
        | SPARSE_PARTS
        | ATTENDANTS
    ),
    claims=_claims,
    read=_read,
)
