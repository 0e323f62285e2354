"""HQQ: codes of 8 to 1 bits in groups of the flattened weight, with zero points that are floats.

`W_q` holds the codes of the group matrix, which is the weight reshaped to [groups, group] (axis 1) or [group, groups]
(axis 0). Its rows are packed in strides: a byte of two codes holds row r in the high bits and row r + half in the low
ones, and so on for four, eight and ten codes. `scale` and `zero` have one value a group; the settings lie beside them
as tensors of one number or of ASCII letters.

A weight is (code - zero) · scale. The encoding of groups within rows is code · scale + (-zero) · scale, which may
round differently; the tensor's own reader keeps the library's order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from truecast.checkpoint.bits import pack
from truecast.checkpoint.encoding import Affine, Factor
from truecast.checkpoint.model import Array, Reader, StoredTensor
from truecast.checkpoint.schemes.model import Module, Reading, Scheme, Settings
from truecast.checkpoint.schemes.parts import raw_bytes
from truecast.checkpoint.schemes.words import slot_of

CODES = "W_q"
USED = ("shape", "axis", "group_size", "nbits", "packing")
UNUSED = (
    "channel_wise",
    "compute_dtype",
    "encoded_state_dict",
    "offload_meta",
    "optimize",
    "quant_scale",
    "quant_zero",
    "round_zero",
    "stores_quant_config",
    "unpack_view_dtype",
    "view_as_float",
)
QUANTIZED = ("zero_q", "scale_q", "meta_zero", "meta_scale")
"""Zero points and scales that are quantized themselves; hqq cannot save them in safetensors, and so nor can we read."""


@dataclass(frozen=True)
class _Packing:
    """How many codes of how many bits lie in one word, the first in the highest bits that are used."""

    bits: int
    count: int
    word: np.dtype[Any]

    def rows(self, group_rows: int) -> int:
        """Rows of words for as many rows of codes; only 3-bit words may have room to spare."""
        return -(-group_rows // self.count)


BYTE, WORD = np.dtype(np.uint8), np.dtype("<i4")
PACKINGS = {
    "8bit_u8": _Packing(8, 1, BYTE),
    "4bit_u8": _Packing(4, 2, BYTE),
    "3bit_32": _Packing(3, 10, WORD),
    "2bit_u8": _Packing(2, 4, BYTE),
    "1bit_u8": _Packing(1, 8, BYTE),
}
ALL = slice(None)

CodesReader = Callable[[int, int, slice], Array]
"""Rows [start, stop) and some columns of the group matrix → codes uint8 [rows, columns]."""


@dataclass(frozen=True)
class _Groups:
    """One module's group matrix: its size, what its codes are packed as, and how its weight is divided."""

    shape: tuple[int, int]
    axis: int
    group: int
    nbits: float
    packing: _Packing

    @property
    def rows(self) -> int:
        return self.count if self.axis else self.group

    @property
    def columns(self) -> int:
        return self.group if self.axis else self.count

    @property
    def count(self) -> int:
        return math.prod(self.shape) // self.group

    @property
    def words(self) -> str:
        return f"HQQ {self.nbits:.3g}-bit, group {self.group}, axis {self.axis}"


def _claims(module: Module, settings: Settings) -> bool:
    """Whether these parts are of HQQ: nobody else writes a W_q."""
    return CODES in module.parts


def _read(module: Module, settings: Settings) -> Reading:
    """The weight [out, in] of one module.

    Raises:
        InputError: parts are missing or contradict each other, or the zero points and scales are quantized themselves.
    """
    groups = _read_groups(module)
    zero, scale = _zero_and_scale(module, groups)
    codes = _codes_reader(module[CODES], groups)
    shape, width = groups.shape, groups.shape[1]
    if groups.axis == 0:
        words = f"{groups.words}, decoded: its groups run across rows"
        return Reading((module.decoded(shape, words, CODES, _across_reader(groups, codes, zero, scale)),))
    library_order = _along_reader(groups, codes, zero, scale)
    if width % groups.group:
        words = f"{groups.words}, decoded: its groups straddle rows"
        return Reading((module.decoded(shape, words, CODES, library_order),))
    encoding = _two_terms(groups, codes, zero, scale)
    return Reading((module.encoded(encoding, shape, groups.words, CODES, library_order),))


def _read_groups(module: Module) -> _Groups:
    shape, axis, group, nbits = (module[name].read().reshape(-1).tolist() for name in USED[:-1])
    packing = PACKINGS.get(bytes(module[USED[-1]].read().astype(np.uint8)).decode("latin-1"))
    numbers = [*shape, *group]
    whole = len(shape) == 2 and len(group) == 1 and all(isinstance(number, int) and number > 0 for number in numbers)
    if packing is None or not whole or axis not in ([0], [1]) or len(nbits) != 1 or math.prod(shape) % group[0]:
        raise module.fail(
            f"has shape {shape}, axis {axis}, group_size {group}, nbits {nbits} and a packing that do not fit together"
        )
    groups = _Groups((shape[0], shape[1]), axis[0], group[0], nbits[0], packing)
    _check_sizes(module, groups)
    return groups


def _check_sizes(module: Module, groups: _Groups) -> None:
    packing = groups.packing
    expected = packing.rows(groups.rows) * groups.columns * packing.word.itemsize
    if module[CODES].nbytes != expected or (packing.word == BYTE and groups.rows % packing.count):
        raise module.fail(
            f"has {module[CODES].nbytes} bytes in {CODES} where {groups.words} of {list(groups.shape)} takes {expected}"
        )


def _zero_and_scale(module: Module, groups: _Groups) -> tuple[Factor, Factor]:
    """One value a group, in a row of its own; `zero_scale` holds both, one after the other."""
    if any(part in module.parts for part in QUANTIZED):
        raise module.fail("has zero points or scales that are quantized themselves", "quantize it again with hqq 0.2.8")
    both = module.get("zero_scale")
    parts = (module["zero"], module["scale"]) if both is None else (both,)
    fitting = groups.count * 2 // len(parts)
    for part in parts:
        if part.size != fitting or part.dtype.kind in "iub":
            raise module.fail(f"has {part.size} {part.stored_as} values in {part.name} where {fitting} floats fit")
    return _values(parts[0], 0), _values(parts[-1], 0 if both is None else groups.count)


def _values(part: StoredTensor, first: int) -> Factor:
    """The values of a part from the `first` on, whatever its shape, as rows of one."""
    itemsize = part.dtype.itemsize

    def read(start: int, stop: int) -> Array:
        return raw_bytes(part, (first + start) * itemsize, (first + stop) * itemsize).view(part.dtype)[:, None]

    return Factor(part.dtype, 1, read)


def _codes_reader(part: StoredTensor, groups: _Groups) -> CodesReader:
    packing, columns = groups.packing, groups.columns
    step, row_bytes = packing.rows(groups.rows), columns * packing.word.itemsize
    mask = packing.word.type((1 << packing.bits) - 1)

    def read(start: int, stop: int, chosen: slice) -> Array:
        codes = np.empty((stop - start, len(range(*chosen.indices(columns)))), np.uint8)
        for place in range(packing.count):
            begin, end = max(start, place * step), min(stop, (place + 1) * step)
            if begin < end:
                raw = raw_bytes(part, (begin - place * step) * row_bytes, (end - place * step) * row_bytes)
                words = raw.view(packing.word).reshape(end - begin, columns)[:, chosen]
                shift = packing.word.type(packing.bits * (packing.count - 1 - place))
                codes[begin - start : end - start] = (words >> shift) & mask
        return codes

    return read


def _along_reader(groups: _Groups, codes: CodesReader, zero: Factor, scale: Factor) -> Reader:
    """Rows of the weight where a row of the group matrix is one group, a piece of the flattened weight."""
    width, group = groups.shape[1], groups.group

    def read(start: int, stop: int) -> Array:
        begin, end = start * width, stop * width
        first, last = begin // group, -(-end // group)
        values = codes(first, last, ALL).astype(np.float32)
        values -= zero.read(first, last).astype(np.float32)
        values *= scale.read(first, last).astype(np.float32)
        return values.reshape(-1)[begin - first * group : end - first * group].reshape(stop - start, width)

    return read


def _across_reader(groups: _Groups, codes: CodesReader, zero: Factor, scale: Factor) -> Reader:
    """Rows of the weight where a row of the group matrix has one weight of every group."""
    width, columns = groups.shape[1], groups.columns

    def read(start: int, stop: int) -> Array:
        begin, end = start * width, stop * width
        first, last = begin // columns, max(begin // columns + 1, -(-end // columns))
        skipped = begin - first * columns
        # Within one row of the group matrix only the columns that are asked for need reading.
        low, high = (skipped, end - first * columns) if last - first == 1 else (0, columns)
        values = codes(first, last, slice(low, high)).astype(np.float32)
        values -= zero.read(low, high).astype(np.float32).T
        values *= scale.read(low, high).astype(np.float32).T
        skipped -= low
        return values.reshape(-1)[skipped : skipped + end - begin].reshape(stop - start, width)

    return read


def _two_terms(groups: _Groups, codes: CodesReader, zero: Factor, scale: Factor) -> Affine:
    width, slot = groups.shape[1], slot_of(groups.packing.bits)
    per_row = width // groups.group

    def packed(start: int, stop: int) -> Array:
        return pack(codes(start * per_row, stop * per_row, ALL).reshape(stop - start, width), slot)

    scales, lowered = _by_row(scale, per_row), _by_row(zero, per_row)
    negative = replace(lowered, read=lambda start, stop: -lowered.read(start, stop))
    return Affine(slot, groups.group, packed, (scales,), 0, offsets=(negative, scales))


def _by_row(values: Factor, per_row: int) -> Factor:
    """Values of groups as those of the rows they are in."""

    def read(start: int, stop: int) -> Array:
        return values.read(start * per_row, stop * per_row).reshape(stop - start, per_row)

    return Factor(values.dtype, per_row, read)


SCHEME = Scheme(
    name="HQQ",
    methods=frozenset({"hqq"}),
    marks=(CODES,),
    parts=frozenset({CODES, "scale", "zero", "zero_scale", *USED, *UNUSED, *QUANTIZED}),
    claims=_claims,
    read=_read,
)
