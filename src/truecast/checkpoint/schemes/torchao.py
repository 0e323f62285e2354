"""torchao: tensor classes taken apart into safetensors, with their class and attributes in the file's header.

The parts of `p.weight` are `p._weight_qdata`, `p._weight_scale` and so on; the header's metadata hold a JSON text under
`p.weight` that names the class. Every class read here means (code - zero) · scale, except `Int4Tensor`, whose zero
point is a float that is added.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from truecast.checkpoint.bits import BYTE_BITS, pack
from truecast.checkpoint.encoding import Affine, groups_of
from truecast.checkpoint.model import Array, Reader, StoredTensor
from truecast.checkpoint.schemes.grids import Block, Grid, block_of, grid, grid_rows, row_factor, turned_factor
from truecast.checkpoint.schemes.minifloats import FLOAT8, float8
from truecast.checkpoint.schemes.model import Module, Reading, Scheme, Settings
from truecast.checkpoint.schemes.nibbles import BITS, PER_WORD, SIGN, SIGNS
from truecast.checkpoint.schemes.parts import byte_rows
from truecast.checkpoint.schemes.words import slot_of, turned

CODES, SCALE, ZERO = "_weight_qdata", "_weight_scale", "_weight_zero_point"
PRE_SCALE = "_weight_act_pre_scale"
IGNORED = {
    "_weight_act_quant_scale": "fixed scale of quantized activations; only weights are converted",
    "_weight_act_quant_zero_point": "fixed zero point of quantized activations; only weights are converted",
}
OTHER_CLASSES = ("_weight_scale_and_zero", "_weight_per_tensor_scale")
"""Parts of classes that are refused; they are named here so that a refusal speaks of the whole module."""

TARGETS = {f"int{bits}": bits for bits in range(1, 9)}
"""Values of `target_dtype` → bits of a code."""
GLANCE_BYTES = 1 << 20
"""Parts up to this size may be looked at when a checkpoint is opened: a fraction of a millisecond each."""


@dataclass(frozen=True)
class _Integers:
    """Integer codes [out, in] of some bits, one a byte, and their scales."""

    module: Module
    shape: tuple[int, int]
    bits: int
    scales: Grid

    @property
    def slot(self) -> int:
        return slot_of(self.bits)

    @property
    def middle(self) -> int:
        return 1 << (self.slot - 1)

    @property
    def columns(self) -> int:
        """Scales of a row."""
        return self.scales.factor.columns


def _claims(module: Module, settings: Settings) -> bool:
    """Whether these parts are of torchao: nobody else names them so."""
    return CODES in module.parts


def _read(module: Module, settings: Settings) -> Reading:
    """The weight [out, in] of one module.

    Raises:
        InputError: its class is not one of those read here, or its parts contradict each other.
    """
    kind, attributes = _description(module, settings.metadata)
    reader = READERS.get(kind)
    if reader is None:
        raise module.fail(
            f"is a torchao {kind}; known are {', '.join(READERS)}", "quantize it again with one of their configurations"
        )
    if PRE_SCALE in module.parts:
        raise module.fail(
            f"scales its input by {PRE_SCALE}, which no weight can hold", "quantize it again without such a scale"
        )
    ignored = {module.parts[part].name: reason for part, reason in IGNORED.items() if part in module.parts}
    return Reading((reader(module, attributes),), ignored)


def _description(module: Module, metadata: Mapping[str, str]) -> tuple[str, Mapping[str, Any]]:
    """The class of a module's weight and its attributes, as the header states them."""
    text = metadata.get(f"{module.name}.weight")
    if text is None:
        raise module.fail("has torchao's parts, but the file's header does not name its class")
    try:
        description = json.loads(text)
        kind, attributes = description["_type"], description.get("_data", {})
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise module.fail(f"has a description in the file's header that cannot be read ({error!r})") from error
    if not isinstance(kind, str) or not isinstance(attributes, dict):
        raise module.fail("has a description in the file's header without class or attributes")
    return kind, attributes


def _shape(module: Module, *dtypes: np.dtype[Any]) -> tuple[int, int]:
    codes = module[CODES]
    if len(codes.shape) != 2 or codes.dtype not in dtypes:
        raise module.fail(f"has {CODES} of type {codes.stored_as} and shape {list(codes.shape)}")
    return codes.shape[0], codes.shape[1]


def _scales(module: Module, shape: tuple[int, int], attributes: Mapping[str, Any]) -> Grid:
    """The scales, whose blocks must divide the weight and be those that the header states."""
    scales, stated = grid(module, SCALE, shape, _blocks(attributes)), attributes.get("block_size")
    found = [scales.height, scales.group]
    if stated not in (None, found) or shape[0] % scales.height or shape[1] % scales.group:
        raise module.fail(f"has {SCALE} for blocks of {found} of {list(shape)}, and its header says {stated}")
    return scales


def _blocks(attributes: Mapping[str, Any]) -> tuple[Block, ...]:
    """The block of weights that the header says share a scale, if it does."""
    block = attributes.get("block_size")
    whole = isinstance(block, list) and all(isinstance(size, int) and size > 0 for size in block)
    return ((block[0], block[1]),) if block and whole and len(block) == 2 else ()


def _read_int8(module: Module, attributes: Mapping[str, Any]) -> StoredTensor:
    return _read_integers(module, BYTE_BITS, attributes)


def _read_intx(module: Module, attributes: Mapping[str, Any]) -> StoredTensor:
    target = attributes.get("target_dtype")
    name = target.get("_data") if isinstance(target, dict) else None
    if name not in TARGETS:
        raise module.fail(f"has codes of the unknown type {name}; known are {', '.join(TARGETS)}")
    return _read_integers(module, TARGETS[name], attributes)


def _read_integers(module: Module, bits: int, attributes: Mapping[str, Any]) -> StoredTensor:
    shape = _shape(module, np.dtype(np.int8))
    scales, zero = _scales(module, shape, attributes), module.get(ZERO)
    integers = _Integers(module, shape, bits, scales)
    words = f"torchao int{bits}, {scales.words}"
    encoding = Affine(integers.slot, scales.group, _codes_reader(integers), (scales.factor,), integers.middle)
    if zero is None or _is_all_zero(zero):
        return module.encoded(encoding, shape, words, CODES)
    if block_of(module, ZERO, shape, _blocks(attributes)) != (scales.height, scales.group):
        raise module.fail(f"has {ZERO} of shape {list(zero.shape)} beside {SCALE} of {list(module[SCALE].shape)}")
    if zero.dtype == np.int8:
        encoding = replace(encoding, zero=_zero_reader(integers, zero))
        return module.encoded(encoding, shape, words, CODES)
    if zero.dtype.kind in "iub":
        raise module.fail(f"has {ZERO} of type {zero.stored_as}")
    return _with_float_zero(integers, encoding, words)


def _is_all_zero(part: StoredTensor) -> bool:
    """Whether a part is small enough to look at, and holds nothing but zeros."""
    return part.nbytes <= GLANCE_BYTES and not np.any(part.rows())


def _codes_reader(integers: _Integers) -> Reader:
    codes, slot, width = integers.module[CODES], integers.slot, integers.shape[1]
    middle, limit = np.uint8(integers.middle), 1 << slot

    def read(start: int, stop: int) -> Array:
        unsigned = codes.rows(start, stop).view(np.uint8) + middle
        if slot < BYTE_BITS and start < stop and width and unsigned.max() >= limit:
            raise integers.module.fail(f"has codes in {CODES} that do not fit int{integers.bits}")
        return pack(unsigned, slot)

    return read


def _zero_reader(integers: _Integers, zero: StoredTensor) -> Reader:
    stored = grid_rows(zero, integers.scales.height, integers.columns)
    middle, limit = integers.middle, 1 << integers.slot

    def read(start: int, stop: int) -> Array:
        shifted = stored(start, stop).astype(np.int16) + middle
        if shifted.size and (shifted.min() < 0 or shifted.max() >= limit):
            raise integers.module.fail(f"has zero points in {ZERO} that do not fit int{integers.bits}")
        return shifted.astype(np.uint8)

    return read


def _with_float_zero(integers: _Integers, encoding: Affine, words: str) -> StoredTensor:
    """Two terms, code · scale + (-zero) · scale; the tensor's own reader subtracts first, as torchao does."""
    module, shape, scale = integers.module, integers.shape, integers.scales.factor
    zero = row_factor(module[ZERO], integers.scales.height, integers.columns)
    negative = replace(zero, read=lambda start, stop: -zero.read(start, stop))
    two_terms = replace(encoding, offsets=(negative, scale))

    def library_order(start: int, stop: int) -> Array:
        codes = module[CODES].rows(start, stop).astype(np.float32)
        values = codes.reshape(stop - start, scale.columns, integers.scales.group)
        values -= zero.read(start, stop).astype(np.float32)[..., None]
        values *= scale.read(start, stop).astype(np.float32)[..., None]
        return values.reshape(stop - start, shape[1])

    return module.encoded(two_terms, shape, f"{words}, float zero points", CODES, library_order)


def _read_float8(module: Module, attributes: Mapping[str, Any]) -> StoredTensor:
    _scales(module, _shape(module, *FLOAT8), attributes)
    return float8(module, "torchao", SCALE, _blocks(attributes), CODES)


def _read_int4_plain(module: Module, attributes: Mapping[str, Any]) -> StoredTensor:
    """`Int4PlainInt32Tensor` of XPU: unsigned codes, eight a word, the first in the lowest bits, integer zeros."""
    rows, words = _shape(module, np.dtype("<i4"))
    shape, zero = (rows, words * PER_WORD), module[ZERO]
    group = _column_group(module, shape, attributes)
    if zero.dtype != np.int8:
        raise module.fail(f"has {ZERO} of type {zero.stored_as}, as only NPUs write", "save it again on another device")
    encoding = Affine(
        bits=BITS,
        group=group,
        codes=byte_rows(module[CODES]),
        scales=(turned_factor(module[SCALE], groups_of(shape[1], group)),),
        zero=_column_zeros(module),
    )
    return module.encoded(encoding, shape, f"torchao int4, group {group}", CODES)


def _column_zeros(module: Module) -> Reader:
    stored = module[ZERO]

    def read(start: int, stop: int) -> Array:
        zeros = turned(stored.rows()[:, start:stop]).view(np.uint8)
        if zeros.size and zeros.max() >= 1 << BITS:
            raise module.fail(f"has zero points in {ZERO} that do not fit 4 bits")
        return zeros

    return read


def _read_int4(module: Module, attributes: Mapping[str, Any]) -> StoredTensor:
    """`Int4Tensor`: signed codes, two a byte, the first in the low bits; w = code · scale + zero, as mslk's kernel."""
    rows, row_bytes = _shape(module, np.dtype(np.int8), np.dtype(np.uint8))
    shape = (rows, row_bytes * 2)
    group = _column_group(module, shape, attributes)
    if module[ZERO].dtype.kind in "iub":
        raise module.fail(f"has {ZERO} of type {module[ZERO].stored_as} where floats are added")
    groups = module[SCALE].shape[0]
    encoding = Affine(
        bits=BITS,
        group=group,
        codes=byte_rows(module[CODES], flipped=SIGNS),
        scales=(turned_factor(module[SCALE], groups),),
        zero=SIGN,
        offsets=() if _is_all_zero(module[ZERO]) else (turned_factor(module[ZERO], groups),),
    )
    return module.encoded(encoding, shape, f"torchao int4, group {group}", CODES)


def _column_group(module: Module, shape: tuple[int, int], attributes: Mapping[str, Any]) -> int:
    """Weights of a row that share a scale, where scales and zero points are stored [groups, out]."""
    scale, zero, block = module[SCALE].shape, module[ZERO].shape, attributes.get("block_size")
    if not isinstance(block, list) or len(block) != 2 or block[0] != 1 or not isinstance(block[1], int) or block[1] < 1:
        raise module.fail(f"is a torchao int4 weight in blocks of {block}, where groups of a row are known")
    if scale != (groups_of(shape[1], block[1]), shape[0]) or zero != scale:
        raise module.fail(
            f"has {SCALE} of shape {list(scale)} and {ZERO} of {list(zero)} for a weight of {list(shape)} "
            f"in groups of {block[1]}"
        )
    stated = attributes.get("shape", [*shape])
    if stated != [*shape]:
        raise module.fail(f"is stored as {list(shape)}, but its header says {stated}")
    return block[1]


READERS: Mapping[str, Callable[[Module, Mapping[str, Any]], StoredTensor]] = MappingProxyType(
    {
        "Float8Tensor": _read_float8,
        "Int4PlainInt32Tensor": _read_int4_plain,
        "Int4Tensor": _read_int4,
        "Int8Tensor": _read_int8,
        "IntxUnpackedToInt8Tensor": _read_intx,
    }
)

SCHEME = Scheme(
    name="torchao",
    methods=frozenset({"torchao"}),
    marks=(CODES,),
    parts=frozenset({CODES, SCALE, ZERO, PRE_SCALE, *IGNORED, *OTHER_CLASSES}),
    claims=_claims,
    read=_read,
)
