"""Codes as libraries pack them into 32-bit words, brought into slots of 2, 4 or 8 bits along a row.

Codes lie in a stream, the lowest bits first and across the borders of words; as many in a word as fit whole; or in
planes, which hold some bits of each code. Libraries that multiply on a GPU store a weight with the inputs along the
first dimension, so a matrix of words may have to be turned too, and its columns may have been sorted ("act-order").

All functions are of arrays; speeds are packed bytes a second on one core.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from truecast.checkpoint.bits import BYTE_BITS, SLOTS, pack, packed_bytes
from truecast.checkpoint.model import Array

WORD_BITS = 32
STREAM_CODES = 8
"""Codes after which a stream of any width is at a byte's border again."""
BLOCK_CODES = 32
"""Codes after which a stream of any width, or a set of planes, is at a word's border again."""
PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}
"""Widths of the planes that make up a code, those of the lowest bits first; other widths are one plane."""
TURNED_ROWS = 8
"""Rows turned at once. Rows a power of two apart share a set of the nearest cache, which has 8 lines: 5.9 GB/s for
words, 16 rows 3.7, all at once 1.0."""
COMPACT_ROWS = 32
"""The same for bytes of a matrix that lies close together: 2.7 GB/s, 8 rows 1.5."""
WIDENED_ROWS = 64
"""Rows brought into slots at once, so that what is made of them stays in the nearest caches: 1.1 GB/s, all 0.5."""
ORDERED_ROWS = 128
"""Rows whose columns are reordered at once, for the same reason: 0.54 GB/s, all 0.2."""


def slot_of(bits: int) -> int:
    """The narrowest slot that holds a code of `bits`, 1 to 8."""
    return next(slot for slot in SLOTS if slot >= bits)


def words_of(codes: int, bits: int) -> int:
    """Words that a stream of so many codes takes."""
    return -(-codes * bits // WORD_BITS)


def as_bytes(words: Array) -> Array:
    """The bytes of each row, those of the lowest bits first: [rows, words] → uint8 [rows, bytes]."""
    return np.ascontiguousarray(words).view(np.uint8)


def turned(matrix: Array) -> Array:
    """The transpose of a matrix, contiguous: [rows, columns] → [columns, rows]."""
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    _turn(matrix, result, TURNED_ROWS)
    return result


def _turn(matrix: Array, result: Array, at_once: int) -> None:
    for start in range(0, len(matrix), at_once):
        result[:, start : start + at_once] = matrix[start : start + at_once].T


def widened(stream: Array, bits: int, slot: int) -> Array:
    """Codes of a stream in slots: uint8 [rows, bytes] → uint8 [rows, n · slot], where n · 8 codes hold them all."""
    if bits == slot:
        return stream
    runs = -(-stream.shape[1] // bits)
    result = np.zeros((len(stream), runs * slot), np.uint8)
    for start in range(0, len(stream), WIDENED_ROWS):
        _widen(stream[start : start + WIDENED_ROWS], result[start : start + WIDENED_ROWS], bits, slot)
    return result


def _widen(stream: Array, result: Array, bits: int, slot: int) -> None:
    """Each 8 codes (`bits` bytes) become one integer of `slot` bytes, whose codes then move apart in three steps.

    The upper four codes move up, then the upper two of each four, then the upper one of each two.
    """
    for place in range(bits):  # Byte by byte: 3.4 GB/s, and runs of 3 bytes 0.7.
        column = stream[:, place::bits]
        result[:, place::slot][:, : column.shape[1]] = column
    integer = np.dtype(f"<u{slot}").type
    values = result.view(integer)
    for moved in (4, 2, 1):
        field = (1 << moved * bits) - 1
        upper = sum(field << start + moved * bits for start in range(0, STREAM_CODES * slot, 2 * moved * slot))
        moving = values & integer(upper)
        values ^= moving
        moving <<= integer(moved * (slot - bits))
        values |= moving


def joined(planes: Array, bits: int, slot: int) -> Array:
    """Codes in planes, in slots: uint8 [rows, n · 4 · bits] → uint8 [rows, n · 4 · slot].

    Each block of 32 codes has one plane after the other (`PLANES`): first the lowest bits of all 32, then the next.
    """
    result = np.zeros((len(planes), planes.shape[1] // bits * slot), np.uint8)
    for start in range(0, len(planes), WIDENED_ROWS):
        _join(planes[start : start + WIDENED_ROWS], result[start : start + WIDENED_ROWS], bits, slot)
    return result


def _join(planes: Array, result: Array, bits: int, slot: int) -> None:
    block_bytes = BLOCK_CODES // BYTE_BITS
    blocks = planes.reshape(len(planes), -1, bits, block_bytes)
    place = 0
    for width in PLANES.get(bits, (bits,)):
        plane = blocks[:, :, place : place + width].reshape(len(planes), -1)
        result |= widened(plane, width, slot) << np.uint8(place)
        place += width


def compacted(words: Array, bits: int, slot: int) -> Array:
    """Codes of words that hold as many as fit whole, in slots: uint32 [rows, words] → uint8 [rows, bytes]."""
    per_word, mask = WORD_BITS // bits, np.uint32((1 << bits) - 1)
    codes = np.empty((*words.shape, per_word), np.uint8)
    for place in range(per_word):
        codes[..., place] = words >> np.uint32(place * bits) & mask
    return pack(codes.reshape(len(words), words.shape[1] * per_word), slot)


def columns_of(words: Array) -> Array:
    """The bytes of words, each in a row of its own: uint32 [n, rows] → uint8 [4 · n, rows]; `turned`, they are rows."""
    columns = np.empty((len(words), words.itemsize, words.shape[1]), np.uint8)
    for place in range(words.itemsize):
        np.right_shift(words, np.uint32(place * BYTE_BITS), out=columns[:, place], casting="unsafe")
    return columns.reshape(len(words) * words.itemsize, words.shape[1])


def reordered(columns: Callable[[int, int], Array], rows: int, slot: int, order: Array) -> Array:
    """Codes in slots with column order[j] in place j, uint8 [rows, bytes].

    `columns` gives the codes of some of the rows turned, uint8 [bytes, stop - start]: a column is a run of bytes there,
    which moves as a whole.
    """
    result = np.empty((rows, packed_bytes(len(order), slot)), np.uint8)
    for start in range(0, rows, ORDERED_ROWS):
        some = result[start : start + ORDERED_ROWS]
        _turn(_taken(columns(start, start + len(some)), slot, order), some, COMPACT_ROWS)
    return result


def _taken(columns: Array, slot: int, order: Array) -> Array:
    """The codes in their new order, still turned."""
    per_byte, mask = BYTE_BITS // slot, np.uint8((1 << slot) - 1)
    codes = np.empty((per_byte, *columns.shape), np.uint8)
    for place in range(per_byte):
        np.right_shift(columns, np.uint8(place * slot), out=codes[place])
    codes &= mask
    index = order % per_byte * len(columns) + order // per_byte
    codes = codes.reshape(per_byte * len(columns), columns.shape[1])
    packed: Array = np.take(codes, index[::per_byte], axis=0)
    for place in range(1, per_byte):
        upper = np.take(codes, index[place::per_byte], axis=0)
        upper <<= np.uint8(place * slot)
        packed[: len(upper)] |= upper
    return packed
