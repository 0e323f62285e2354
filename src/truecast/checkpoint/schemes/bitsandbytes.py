"""bitsandbytes: NF4 and FP4 codes in blocks of the flattened weight, and rows of 8-bit integers.

4 bits: `weight` holds two codes a byte, the even one in the high bits, in any storage dtype; the JSON in
`weight.quant_state.bitsandbytes__nf4` says the shape and the block size; `weight.absmax` is one scale a block, itself
in 8 bits where the file is doubly quantized. 8 bits: `weight` int8 [out, in] and `SCB` float32 [out], the largest
magnitude of each row.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from truecast.checkpoint.encoding import Affine, Codebook, Factor, groups_of
from truecast.checkpoint.model import Array, Reader, StoredTensor
from truecast.checkpoint.schemes.grids import grid
from truecast.checkpoint.schemes.model import Module, Reading, Scheme, Settings
from truecast.checkpoint.schemes.parts import byte_rows, in_runs, raw_bytes

KINDS = {"nf4": "NF4", "fp4": "FP4"}
STATES = {kind: f"weight.quant_state.bitsandbytes__{kind}" for kind in KINDS}
CODES, ABSMAX, TABLE = "weight", "weight.absmax", "weight.quant_map"
NESTED_ABSMAX, NESTED_TABLE = "weight.nested_absmax", "weight.nested_quant_map"
ROW_SCALE, ROW_FORMAT = "SCB", "weight_format"

BITS, TABLE_SIZE, NESTED_TABLE_SIZE = 4, 16, 256
MIDDLE = 128
PER_127 = np.float32(7.874015718698502e-3)
"""1/127 as bitsandbytes writes it (int8_vectorwise_dequant): its float32 differs from that of 1/127 computed."""
ROW_MAJOR = 0
"""The one `weight_format` in which rows are stored as they are; others are the tiles of old GPU kernels."""


@dataclass(frozen=True)
class _State:
    """What the JSON beside 4-bit codes says: the weight's shape, and how many weights share one absmax."""

    kind: str
    shape: tuple[int, int]
    block: int
    nested_block: int
    nested_offset: float

    @property
    def words(self) -> str:
        doubly = ", double quantization" if self.nested_block else ""
        return f"bitsandbytes {KINDS[self.kind]}, block {self.block}{doubly}"


def _claims(module: Module, settings: Settings) -> bool:
    """Whether these parts are of bitsandbytes: a 4-bit state, or int8 rows beside their scales."""
    return any(state in module.parts for state in STATES.values()) or module[CODES].dtype == np.int8


def _read(module: Module, settings: Settings) -> Reading:
    """The weight [out, in] of one module.

    Raises:
        InputError: parts are missing or contradict each other, or int8 rows are stored in the tiles of a GPU kernel.
    """
    kind = next((kind for kind, state in STATES.items() if state in module.parts), None)
    return Reading((_read_rows(module) if kind is None else _read_blocks(module, _read_state(module, kind)),))


def _read_state(module: Module, kind: str) -> _State:
    name = STATES[kind]
    try:
        state = json.loads(bytes(module[name].read()))
        shape, block = tuple(state["shape"]), state["blocksize"]
        nested, offset = (0, 0.0) if NESTED_ABSMAX not in module.parts else _nested(state)
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise module.fail(f"has a {name} that cannot be read ({error!r})") from error
    whole = all(isinstance(number, int) and number > 0 for number in (*shape, block))
    if len(shape) != 2 or not whole or state.get("quant_type") != kind:
        raise module.fail(f"has a {name} with shape {state['shape']}, blocksize {block}, {state.get('quant_type')}")
    return _State(kind, shape, block, nested, offset)


def _nested(state: dict[str, Any]) -> tuple[int, float]:
    block, offset = int(state["nested_blocksize"]), float(state["nested_offset"])
    if block <= 0:
        raise ValueError(f"nested_blocksize {block}")
    return block, offset


def _read_blocks(module: Module, state: _State) -> StoredTensor:
    width, block = state.shape[1], state.block
    _check_sizes(module, state)
    table = np.asarray(module[TABLE].read(), np.float32).reshape(-1)
    absmax = _absmax_reader(module, state)
    if width % 2 or (width % block and block % width):
        words = f"{state.words}, decoded: its blocks straddle rows"
        return module.decoded(state.shape, words, CODES, _flat_reader(module[CODES], table, state, absmax))
    encoding = Codebook(
        bits=BITS,
        table=table,
        group=min(block, width),
        codes=_codes_reader(module[CODES], width),
        scales=(_block_factor(absmax, width, block),),
    )
    return module.encoded(encoding, state.shape, state.words, CODES)


def _check_sizes(module: Module, state: _State) -> None:
    """Check that the parts are as long as the shape in the JSON needs them."""
    size = state.shape[0] * state.shape[1]
    blocks = groups_of(size, state.block)
    storage = module[CODES].dtype.itemsize
    _require(module, CODES, module[CODES].nbytes, groups_of(size, 2 * storage) * storage, "bytes")
    _require(module, ABSMAX, module[ABSMAX].size, blocks, "values")
    _require(module, TABLE, module[TABLE].size, TABLE_SIZE, "values")
    if state.nested_block:
        _require(module, NESTED_ABSMAX, module[NESTED_ABSMAX].size, groups_of(blocks, state.nested_block), "values")
        _require(module, NESTED_TABLE, module[NESTED_TABLE].size, NESTED_TABLE_SIZE, "values")
    if (module[ABSMAX].dtype == np.uint8) != bool(state.nested_block):
        raise module.fail(f"has {ABSMAX} of type {module[ABSMAX].stored_as}, and nothing beside it to scale it")


def _require(module: Module, part: str, found: int, expected: int, unit: str) -> None:
    if found != expected:
        raise module.fail(f"has {found} {unit} in {part} where its shape and block size need {expected}")


def _codes_reader(part: StoredTensor, width: int) -> Reader:
    row_bytes = width // 2

    def read(start: int, stop: int) -> Array:
        stored = raw_bytes(part, start * row_bytes, stop * row_bytes).reshape(stop - start, row_bytes)
        return (stored << np.uint8(BITS)) | (stored >> np.uint8(BITS))

    return read


def _absmax_reader(module: Module, state: _State) -> Reader:
    """Blocks [start, stop) → their scales, float32 or as they are stored."""
    stored = module[ABSMAX]
    if not state.nested_block:
        return lambda start, stop: stored.rows(start, stop).reshape(-1)
    table = np.asarray(module[NESTED_TABLE].read(), np.float32).reshape(-1)
    outer, every, offset = module[NESTED_ABSMAX], state.nested_block, np.float32(state.nested_offset)

    def read(start: int, stop: int) -> Array:
        codes = stored.rows(start, stop).reshape(-1)
        scales = outer.rows(start // every, groups_of(stop, every)).reshape(-1).astype(np.float32)
        first = start // every * every
        values: Array = table[codes] * np.repeat(scales, every)[start - first : stop - first]
        return values + offset

    return read


def _block_factor(absmax: Reader, width: int, block: int) -> Factor:
    """Scales [rows, blocks of a row]; where a block holds several rows, each of them has its scale."""
    columns, repeats = max(1, width // block), max(1, block // width)

    def read(first: int, last: int) -> Array:
        return np.repeat(absmax(first * columns, last * columns).reshape(-1, columns), repeats, axis=0)

    return Factor(absmax(0, 0).dtype, columns, in_runs(repeats, read))


def _flat_reader(part: StoredTensor, table: Array, state: _State, absmax: Reader) -> Reader:
    """Rows decoded as what they are, a piece of one long sequence of codes and blocks."""
    width, block = state.shape[1], state.block

    def read(start: int, stop: int) -> Array:
        begin, end = start * width, stop * width
        stored = raw_bytes(part, begin // 2, groups_of(end, 2))
        codes = np.stack([stored >> np.uint8(BITS), stored & np.uint8(0xF)], axis=1).reshape(-1)
        values: Array = table[codes[begin % 2 : begin % 2 + end - begin]]
        scales = np.repeat(absmax(begin // block, groups_of(end, block)).astype(np.float32), block)
        values *= scales[begin % block : begin % block + end - begin]
        return values.reshape(stop - start, width)

    return read


def _read_rows(module: Module) -> StoredTensor:
    codes, scale, layout = module[CODES], module[ROW_SCALE], module.get(ROW_FORMAT)
    if layout is not None and int(layout.read().reshape(-1)[0]) != ROW_MAJOR:
        raise module.fail("is stored in the tiles of a GPU kernel", "load it with bitsandbytes there and save it again")
    if len(codes.shape) != 2 or scale.size != codes.shape[0]:
        raise module.fail(f"has {scale.size} values in {ROW_SCALE} for a weight of {list(codes.shape)}")
    shape = module.matrix(CODES)
    scales = grid(module, ROW_SCALE, shape).factor

    def library_order(start: int, stop: int) -> Array:
        values = codes.rows(start, stop).astype(np.float32)
        values *= scales.read(start, stop)
        values *= PER_127
        return values

    def folded(start: int, stop: int) -> Array:
        return scales.read(start, stop).astype(np.float32) * PER_127

    factor = Factor(np.dtype(np.float32), 1, folded)
    encoding = Affine(8, shape[1], byte_rows(codes, flipped=MIDDLE), (factor,), MIDDLE)
    return module.encoded(encoding, shape, "bitsandbytes int8, per channel", CODES, library_order)


SCHEME = Scheme(
    name="bitsandbytes",
    methods=frozenset({"bitsandbytes"}),
    marks=(*STATES.values(), ROW_SCALE),
    parts=frozenset(
        {*STATES.values(), CODES, ABSMAX, TABLE, NESTED_ABSMAX, NESTED_TABLE, ROW_SCALE, ROW_FORMAT},
    ),
    claims=_claims,
    read=_read,
)
