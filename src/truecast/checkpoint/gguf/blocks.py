"""Reading fields out of raw GGUF blocks: packed codes in the order of the weights, and the numbers beside them.

Each public function makes a function from the bytes of n blocks, uint8 [n, block bytes], to one field of each block.
Bytes are worked on eight at a time, as uint64 lanes of a little-endian machine; there is no loop over blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from truecast.checkpoint.model import Array

Blocks = Callable[[Array], Array]
"""Bytes of n blocks, uint8 [n, block bytes] → a field of each block, [n, …]."""

LANE = 8
"""Bytes of a lane."""
FIVE_BITS_UP, SIX_BITS_UP = 112, 96
"""What puts codes of 5 and 6 bits around the middle of an 8-bit slot: 16 + 112 = 32 + 96 = 128."""
SUB_BLOCKS = 8
"""Parts of a super-block of 256 weights that have a 6-bit scale each (Q4_K, Q5_K)."""


def at(start: int, dtype: np.dtype[Any], count: int = 1) -> Blocks:
    """`count` numbers of `dtype` from byte `start` on: [n, count]."""
    stop = start + count * dtype.itemsize

    def read(blocks: Array) -> Array:
        return _bytes(blocks, start, stop).view(dtype)

    return read


def negated(field: Blocks) -> Blocks:
    """The same numbers with the other sign."""
    return lambda blocks: np.negative(field(blocks))


def nibbles(start: int, stop: int, run: int) -> Blocks:
    """4-bit codes: of each `run` bytes the low nibbles, then the high nibbles."""

    def read(blocks: Array) -> Array:
        lanes = _lanes(blocks, start, stop)
        out = np.empty((len(blocks), (stop - start) // run, 2, run // 2 // LANE), np.uint64)
        for place in range(2):
            out[:, :, place] = _joined(_field(lanes, 4 * place, 4), 4).view(np.uint64).reshape(*out.shape[:2], -1)
        return out.view(np.uint8).reshape(len(blocks), -1)

    return read


def five_bits(high: int, low: int) -> Blocks:
    """Q5_0 and Q5_1: nibbles from byte `low` on, the fifth bits from byte `high` on; moved up to 112 … 143."""

    def read(blocks: Array) -> Array:
        lanes = _lanes(blocks, low, low + 16)
        fifth = np.unpackbits(blocks[:, high : high + 4], axis=1, bitorder="little").view(np.uint64)
        codes = np.concatenate([_field(lanes, 0, 4), _field(lanes, 4, 4)], axis=1)
        codes |= fifth << np.uint64(4)
        codes += _every(FIVE_BITS_UP)
        return codes.view(np.uint8)

    return read


def five_bits_k(blocks: Array) -> Array:
    """Q5_K's codes, moved up to 112 … 143: bit j of the 32 bytes from 16 on is the fifth of sub-block j's."""
    fifth, low = _lanes(blocks, 16, 48)[:, None], _lanes(blocks, 48, 176).reshape(-1, 4, 4)
    codes = np.empty((len(blocks), SUB_BLOCKS, 4), np.uint64)
    for place in range(2):
        codes[:, place::2] = _field(low, 4 * place, 4)
    shifts = np.arange(SUB_BLOCKS, dtype=np.uint64)[:, None]
    codes |= ((fifth >> shifts) & _every(1)) << np.uint64(4)
    codes += _every(FIVE_BITS_UP)
    return codes.view(np.uint8).reshape(len(blocks), -1)


def six_bits(blocks: Array) -> Array:
    """Q6_K's codes, moved up to 96 … 159: nibbles of two 32-byte runs per half, then the upper two bits of four."""
    low, high = _lanes(blocks, 0, 128).reshape(-1, 2, 8), _lanes(blocks, 128, 192).reshape(-1, 2, 4)
    codes = np.empty((len(blocks), 2, 4, 4), np.uint64)
    for place in range(2):
        codes.reshape(-1, 2, 2, 8)[:, :, place] = _field(low, 4 * place, 4)
    for place in range(4):
        codes[:, :, place] |= _field(high, 2 * place, 2) << np.uint64(4)
    codes += _every(SIX_BITS_UP)
    return codes.view(np.uint8).reshape(len(blocks), -1)


def eight_bits(blocks: Array) -> Array:
    """Q8_0's codes, moved up from -128 … 127 to 0 … 255."""
    return np.bitwise_xor(blocks[:, 2:34], np.uint8(0x80))


def two_bits(start: int) -> Blocks:
    """Q2_K's and TQ2_0's codes: of each 32 bytes the lowest two bits, then the next two, and so on."""

    def read(blocks: Array) -> Array:
        lanes = _lanes(blocks, start, start + 64).reshape(-1, 2, 4)
        out = np.empty((len(blocks), 2, 4, 1), np.uint64)
        for place in range(4):
            out[:, :, place] = _joined(_field(lanes, 2 * place, 2), 2).view(np.uint64)
        return out.view(np.uint8).reshape(len(blocks), -1)

    return read


def three_bits(blocks: Array) -> Array:
    """Q3_K's codes in 4-bit slots, moved up to 4 … 11: two bits as in Q2_K, the third in a mask of its own."""
    third, low = _lanes(blocks, 0, 32), _lanes(blocks, 32, 96).reshape(-1, 2, 4)
    out = np.empty((len(blocks), 2, 4, 2), np.uint64)
    for half in range(2):
        for place in range(4):
            codes = _field(low[:, half], 2 * place, 2) | _field(third, 4 * half + place, 1) << np.uint64(2)
            out[:, half, place] = _joined(codes + _every(4), 4).view(np.uint64)
    return out.view(np.uint8).reshape(len(blocks), -1)


def six_bit_scales(start: int) -> Blocks:
    """The 8 scales in the 12 bytes from `start` on, each below 64 (Q4_K, Q5_K): uint8 [n, 8]."""

    def read(blocks: Array) -> Array:
        first, _, last = _thirds(blocks, start)
        return np.concatenate([first & 0x3F, (last & 0x0F) | (first >> 6) << 4], axis=1)

    return read


def six_bit_minima(start: int) -> Blocks:
    """The 8 minima in the same 12 bytes: uint8 [n, 8]."""

    def read(blocks: Array) -> Array:
        _, middle, last = _thirds(blocks, start)
        return np.concatenate([middle & 0x3F, last >> 4 | (middle >> 6) << 4], axis=1)

    return read


def signed_scales(blocks: Array) -> Array:
    """Q3_K's 16 scales, six bits each in the 12 bytes from 96 on, less 32: int8 [n, 16]."""
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    lower = np.concatenate([low & 0x0F, low >> 4], axis=1)
    upper = np.concatenate([(high >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    return _less_32(lower | upper << 4)


def low_nibbles(start: int, stop: int) -> Blocks:
    """The low nibble of each byte: uint8 [n, stop - start]."""
    return lambda blocks: blocks[:, start:stop] & 0x0F


def high_nibbles(start: int, stop: int) -> Blocks:
    """The high nibble of each byte: uint8 [n, stop - start]."""
    return lambda blocks: blocks[:, start:stop] >> 4


def iq4_scales(blocks: Array) -> Array:
    """IQ4_XS's 8 scales less 32: four bits each in bytes 4 … 7, two more in the number at byte 2: int8 [n, 8]."""
    low = blocks[:, 4:8]
    lower = np.stack([low & 0x0F, low >> 4], axis=2).reshape(len(blocks), -1)
    upper = at(2, np.dtype("<u2"))(blocks) >> np.arange(0, 2 * SUB_BLOCKS, 2, dtype=np.uint16) & 3
    return _less_32(lower | upper.astype(np.uint8) << 4)


def ternary(blocks: Array) -> Array:
    """TQ1_0's codes, 0 … 2, in 2 bits: five (the last bytes: four) to a byte, as digits of a fraction to the base 3."""
    runs = [(0, 32, 5), (32, 48, 5), (48, 52, 4)]
    digits = [blocks[:, None, start:stop] * _THREES[:count, None] for start, stop, count in runs]
    bytes_ = np.concatenate([run.reshape(len(blocks), -1) for run in digits], axis=1)
    # The upper byte of three times each, which is the digit before the point.
    codes = (bytes_ > 255 // 3).view(np.uint8) + (bytes_ > 2 * 255 // 3).view(np.uint8)
    return _joined(codes.view(np.uint64), 2)


_THREES = np.array([1, 3, 9, 27, 81], np.uint8)


def _less_32(scales: Array) -> Array:
    return np.asarray(scales.view(np.int8) - np.int8(32))


def _thirds(blocks: Array, start: int) -> tuple[Array, Array, Array]:
    return blocks[:, start : start + 4], blocks[:, start + 4 : start + 8], blocks[:, start + 8 : start + 12]


def _lanes(blocks: Array, start: int, stop: int) -> Array:
    """Bytes [start, stop) of each block as uint64 [n, (stop - start) / 8]."""
    return _bytes(blocks, start, stop).view(np.uint64)


def _bytes(blocks: Array, start: int, stop: int) -> Array:
    """Bytes [start, stop) of each block, one after the other: uint8 [n, stop - start]."""
    whole = blocks[:, start:stop].view(f"V{stop - start}")  # moved as one element, four times as fast as byte by byte
    return np.ascontiguousarray(whole).view(np.uint8)


def _every(byte: int) -> np.uint64:
    """A lane of which every byte is `byte`."""
    return np.uint64(int.from_bytes(bytes([byte]) * LANE, "little"))


def _field(lanes: Array, shift: int, bits: int) -> Array:
    """Bits [shift, shift + bits) of every byte, as bytes."""
    shifted = lanes >> np.uint64(shift) if shift else lanes
    return np.bitwise_and(shifted, _every((1 << bits) - 1))


def _joined(codes: Array, bits: int) -> Array:
    """Lanes of one code per byte [..., n] → neighbours in one byte: uint8 [..., n · bits]."""
    codes = codes | codes >> np.uint64(8 - bits)
    if bits == 4:
        return codes.view(np.uint16).astype(np.uint8)
    codes |= codes >> np.uint64(16 - 2 * bits)
    return codes.view(np.uint32).astype(np.uint8)
