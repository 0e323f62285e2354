"""AMD Quark: integers of 4 and 8 bits, float8, and OCP MX floats of 4 and 6 bits.

Data flow: the parts of a module → their types tell the format → codes and scales, turned where they are stored with
the inputs along the first dimension, as Quark stores integers in groups.

What the tensors do not show is in config.json: whether 4-bit codes are signed (`dtype`), and whether the eight codes
of a word are interleaved (`pack_method`). Layouts are those of Quark 0.13 (quark/torch/utils/pack.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from truecast.checkpoint.bits import BYTE_BITS
from truecast.checkpoint.encoding import Affine
from truecast.checkpoint.model import Reader, StoredTensor
from truecast.checkpoint.schemes.attendants import ATTENDANTS, CACHE_PARTS, only_attendants, reading
from truecast.checkpoint.schemes.grids import EXPONENT_TYPES, Block, grid, signed_zeros, turned_factor
from truecast.checkpoint.schemes.minifloats import FLOAT8, MX_GROUP, float4, float6, float8
from truecast.checkpoint.schemes.model import Module, Reading, Scheme, Settings
from truecast.checkpoint.schemes.nibbles import (
    BITS,
    INTERLEAVED,
    PER_WORD,
    PLAIN,
    SIGN,
    SIGNS,
    Places,
    row_codes,
    row_zeros,
)
from truecast.checkpoint.schemes.parts import byte_columns, byte_rows, common_value

NAME = "Quark"
METHODS = frozenset({"quark"})
SCALE, ZERO = "weight_scale", "weight_zero_point"
PACKINGS = {"reorder": INTERLEAVED, "order": PLAIN}
"""Values of `pack_method`: the codes of a word interleaved as in AWQ, or one after the other."""
SIGN_8 = 0x80
"""The sign bit of a code of 8 bits: flipping it adds 128."""


def stated_weights(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """Every configuration of weights that config.json states: the global one, and those of layers and types."""
    quantization = settings.quantization
    named = [quantization.get(key) or {} for key in ("layer_quant_config", "layer_type_quant_config")]
    for layer in (quantization.get("global_quant_config"), *(layer for names in named for layer in names.values())):
        weight = (layer or {}).get("weight")
        yield from weight if isinstance(weight, list) else [weight] if weight else []


def _claims(module: Module, settings: Settings) -> bool:
    if settings.quantization.get("quant_method") not in METHODS:
        return False
    return {"weight", SCALE} <= set(module.parts) or only_attendants(module, settings, METHODS)


def _read(module: Module, settings: Settings) -> Reading:
    return reading(module, lambda module: _weight(module, settings))


def _weight(module: Module, settings: Settings) -> StoredTensor:
    weight, scale = module["weight"], module[SCALE]
    types = frozenset(str(stated.get("dtype")) for stated in stated_weights(settings))
    if weight.dtype in FLOAT8:
        return float8(module, NAME, SCALE, tuple(_blocks(settings)))
    if weight.dtype == np.int32:
        return _int4(module, _only(module, types, "int4", "uint4"), _places(module, settings))
    if weight.dtype == np.uint8 and scale.dtype in EXPONENT_TYPES:
        return _mx(module, types)
    if weight.dtype in (np.int8, np.uint8):
        name = _only(module, types, *(("int8",) if weight.dtype == np.int8 else ("uint8",)))
        return _int8_groups(module) if len(scale.shape) == 2 else _int8_rows(module, name)
    raise module.fail(f"is stored as {weight.stored_as}, which is not known", "give the float checkpoint")


def _blocks(settings: Settings) -> Iterator[Block]:
    for stated in stated_weights(settings):
        if stated.get("block_size"):
            yield int(stated["block_size"][0]), int(stated["block_size"][1])
        elif stated.get("group_size"):
            yield 1, int(stated["group_size"])


def _only(module: Module, types: frozenset[str], *possible: str) -> str:
    """The one type that both config.json and the tensors allow."""
    found = sorted(types & set(possible))
    if len(found) != 1:
        raise module.fail(
            f"may hold {' or '.join(possible)}, and config.json states {', '.join(sorted(types)) or 'no type'}",
            "give a checkpoint whose config.json states the type of its weights",
        )
    return found[0]


def _places(module: Module, settings: Settings) -> Places:
    method = (settings.quantization.get("export") or {}).get("pack_method", "reorder")
    if method not in PACKINGS:
        raise module.fail(
            f"is packed by {method!r}, which is not known; known are {' and '.join(PACKINGS)}",
            "give the float checkpoint it was made from",
        )
    return PACKINGS[method]


def _mx(module: Module, types: frozenset[str]) -> StoredTensor:
    """Floats with exponents for scales: uint8 [out, bytes] and [out, in / 32]."""
    rows, columns = module.matrix("weight")
    across = module[SCALE].shape[-1]
    scales = grid(module, SCALE, (rows, across * MX_GROUP), [(1, MX_GROUP)])
    if columns * 2 == across * MX_GROUP:
        return float4(module, f"{NAME} MXFP4", "weight", MX_GROUP, (scales.factor,))
    if columns * 4 == across * MX_GROUP * 3:
        _only(module, types, "fp6_e2m3", "fp6_e3m2")
        if "fp6_e3m2" in types:
            raise module.fail("holds 6-bit floats of the kind E3M2, which is not known", "give the float checkpoint")
        return float6(module, f"{NAME} MXFP6", "weight", MX_GROUP, (scales.factor,))
    raise module.fail(f"has {columns} bytes in a row for {across} scales, which is neither MXFP4 nor MXFP6")


def _turned_shape(module: Module, per_item: int) -> tuple[int, int, int]:
    """The weight's [out, in] and the groups of a row, where codes are [in, out / per_item] and scales [groups, out]."""
    width, columns = module.matrix("weight")
    shape = module[SCALE].shape
    if len(shape) != 2 or -(-shape[1] // per_item) != columns or not shape[0] or width % shape[0]:
        raise module.fail(
            f"has codes of shape {list(module['weight'].shape)} and scales of shape {list(shape)}, which are not those "
            "of integers in groups",
            "quantize the weights in groups, or give the float checkpoint",
        )
    return shape[1], width, shape[0]


def _int4(module: Module, name: str, places: Places) -> StoredTensor:
    """int32 [in, out / 8], scales [groups, out] and zero points [groups, out / 8]."""
    rows, width, groups = _turned_shape(module, PER_WORD)
    signed = name == "int4"
    encoding = Affine(
        bits=BITS,
        group=width // groups,
        codes=row_codes(module["weight"], places, SIGNS if signed else 0),
        scales=(turned_factor(module[SCALE], groups),),
        zero=_int4_zero(module, (rows, groups), places, SIGN if signed else 0),
    )
    return module.encoded(encoding, (rows, width), f"{NAME} {name}, group {width // groups}", "weight")


def _int4_zero(module: Module, shape: tuple[int, int], places: Places, sign: int) -> int | Reader:
    """The zero points, where there are any; else the middle of the range."""
    stored, (rows, groups) = module.get(ZERO), shape
    if stored is None:
        return sign
    if stored.dtype != np.int32 or stored.shape != (groups, -(-rows // PER_WORD)):
        raise module.fail(f"has a {ZERO} of shape {list(stored.shape)} ({stored.stored_as}) for {groups} groups")
    return row_zeros(stored, places, rows, sign)


def _int8_groups(module: Module) -> StoredTensor:
    """int8 or uint8 [in, out], scales and zero points [groups, out]."""
    weight = module["weight"]
    rows, width, groups = _turned_shape(module, 1)
    sign = SIGN_8 if weight.dtype == np.int8 else 0
    encoding = Affine(
        bits=BYTE_BITS,
        group=width // groups,
        codes=byte_columns(weight, sign),
        scales=(turned_factor(module[SCALE], groups),),
        zero=_int8_zero(module, (groups, rows), sign),
    )
    return module.encoded(encoding, (rows, width), f"{NAME} {weight.dtype}, group {width // groups}", "weight")


def _int8_zero(module: Module, shape: tuple[int, int], sign: int) -> int | Reader:
    stored = module.get(ZERO)
    if stored is None:
        return sign
    if stored.shape != shape or stored.dtype != module["weight"].dtype:
        raise module.fail(f"has a {ZERO} of shape {list(stored.shape)} ({stored.stored_as}), expected {list(shape)}")
    one = common_value(stored, stored.rows(0, 1)[0].view(np.uint8) ^ np.uint8(sign))
    return byte_columns(stored, sign) if one is None else one


def _int8_rows(module: Module, name: str) -> StoredTensor:
    """int8 or uint8 [out, in] with one scale and zero point for each row or for all."""
    shape = module.matrix("weight")
    sign = SIGN_8 if name == "int8" else 0
    scales = grid(module, SCALE, shape)
    zero = _row_zeros(module, scales.height, sign)
    encoding = Affine(BYTE_BITS, scales.group, byte_rows(module["weight"], sign), (scales.factor,), zero)
    return module.encoded(encoding, shape, f"{NAME} {name}, {scales.words}", "weight")


def _row_zeros(module: Module, height: int, middle: int) -> int | Reader:
    stored = module.get(ZERO)
    if stored is None:
        return middle
    if stored.size != module[SCALE].size or stored.dtype.kind not in "iu":
        raise module.fail(f"has a {ZERO} of shape {list(stored.shape)} ({stored.stored_as}) unlike its {SCALE}")
    values = stored.read().reshape(-1)
    if np.all(values == values[0]):
        return int(values[0]) + middle
    return signed_zeros(stored, height, 1, middle)


SCHEME = Scheme(
    name=NAME,
    methods=METHODS,
    marks=(SCALE, *CACHE_PARTS),
    parts=frozenset({"weight", SCALE, ZERO} | ATTENDANTS),
    claims=_claims,
    read=_read,
)
