"""AWQ: the layouts of AutoAWQ, also written by GPTQModel and AutoRound; 4-bit codes with zero points.

Data flow: the shapes say which of three layouts a module has → codes, scales and zero points of an `Affine`.

GEMM: qweight int32 [width, rows / 8], qzeros int32 [groups, rows / 8], scales [groups, rows]; eight neighbouring rows
share a word, in an order of their own. GEMV: qweight int32 [rows, width / 8], qzeros int32 [rows, z], scales
[rows, 8 · z], padded to z words. GEMV-fast, llm-awq: qweight int16 [rows / 4, width], scales and qzeros (also called
scaled_zeros) floats [8 · z, rows], where qzeros is -zero · scale, already rounded.
Sources: AutoAWQ 0.2.9 (awq/modules/linear), GPTQModel 7.7.0 (nn_modules/qlinear/gem*_awq.py, utils/gemv.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np

from truecast.checkpoint.bits import BYTE_BITS, unpack
from truecast.checkpoint.encoding import Affine, Factor, groups_of
from truecast.checkpoint.model import Array, StoredTensor
from truecast.checkpoint.schemes.grids import group_of, stated_group, turned_factor
from truecast.checkpoint.schemes.model import Module, Reading, Scheme, Settings
from truecast.checkpoint.schemes.nibbles import BITS, INTERLEAVED, PER_WORD, row_codes, row_zeros
from truecast.checkpoint.schemes.parts import byte_rows, in_runs
from truecast.checkpoint.schemes.words import as_bytes
from truecast.errors import InputError

FAST_ROWS, FAST_COLUMNS = 4, 64
"""GEMV-fast: rows that are interleaved, and columns after which the next of them follows."""
PADDING = {64: 2, 32: 4, 16: 8}
"""GEMV, GEMV-fast: the padded groups are a multiple of 8 times this, by the length of a group; others: 1."""


class Layout(Enum):
    """How a module's tensors lie; the values are what configurations call them."""

    GEMM = "gemm"
    GEMV = "gemv"
    FAST = "gemv_fast"


def layout(module: Module) -> Layout | None:
    """The layout that types and shapes tell, or None."""
    qweight, qzeros, scales = module.get("qweight"), zeros_part(module), module.get("scales")
    if qweight is None or qzeros is None or scales is None:
        return None
    if any(len(part.shape) != 2 or not part.size for part in (qweight, qzeros, scales)):
        return None
    codes, zeros, factors = qweight.shape, qzeros.shape, scales.shape
    if qweight.dtype == np.int16 and qzeros.dtype.kind != "i":
        return Layout.FAST if factors == zeros and factors[1] == FAST_ROWS * codes[0] else None
    if qweight.dtype != np.int32 or qzeros.dtype != np.int32:
        return None
    if factors != (zeros[0], PER_WORD * zeros[1]):
        return None
    if codes[0] == zeros[0]:  # As GEMM this would be groups of one weight, which nobody makes.
        return Layout.GEMV
    return Layout.GEMM if codes[1] == zeros[1] else None


def zeros_part(module: Module) -> StoredTensor | None:
    """The zero points, under either of their names."""
    return module.get("qzeros") or module.get("scaled_zeros")


def _read(module: Module, settings: Settings) -> Reading:
    """One AWQ module.

    Raises:
        InputError: tensors that contradict each other or the configuration, or that no layout explains.
    """
    return Reading((weight(module, settings.quantization, "AWQ"),))


def weight(module: Module, stated: Mapping[str, Any], library: str) -> StoredTensor:
    """The weight of a module in one of AWQ's layouts; `stated` is what the configuration says of it.

    Raises:
        InputError: as `read`.
    """
    found = layout(module)
    if found is None:
        raise _unknown(module, stated)
    make = {Layout.GEMM: _gemm, Layout.GEMV: _gemv, Layout.FAST: _fast}[found]
    encoding, shape = make(module, stated)
    return module.encoded(encoding, shape, f"{library} 4-bit ({found.value}), group {encoding.group}", "qweight")


def _unknown(module: Module, stated: Mapping[str, Any]) -> InputError:
    version = stated.get("version") or stated.get("format") or "none"
    for part in ("qweight", "qzeros", "scales"):
        if part != "qzeros" or zeros_part(module) is None:
            module[part]
    shapes = ", ".join(f"{name} {part.stored_as} {list(part.shape)}" for name, part in module.parts.items())
    return module.fail(
        f"has tensors of types and shapes that none of the layouts gemm, gemv and gemv_fast has ({shapes}; the "
        f"configuration says version {version})",
        "save it as gemm with 4 bits",
    )


def _gemm(module: Module, stated: Mapping[str, Any]) -> tuple[Affine, tuple[int, int]]:
    width, words = module["qweight"].shape
    groups, rows = module["scales"].shape
    encoding = Affine(
        bits=BITS,
        group=group_of(module, width, groups, stated),
        codes=row_codes(module["qweight"], INTERLEAVED),
        scales=(turned_factor(module["scales"], groups),),
        zero=row_zeros(module["qzeros"], INTERLEAVED, rows),
    )
    return encoding, (PER_WORD * words, width)


def _padded_group(module: Module, width: int, padded: int, stated: Mapping[str, Any]) -> int:
    """The length of a group where more scales are stored than there are groups."""
    group = stated_group(stated, width)
    multiple = PER_WORD * PADDING.get(group, 1)
    if padded != -(-groups_of(width, group) // multiple) * multiple:
        raise module.fail(
            f"has {padded} padded groups for {width} columns, which the configuration's groups of {group} do not give",
            "correct group_size in quantization_config",
        )
    return group


def _gemv(module: Module, stated: Mapping[str, Any]) -> tuple[Affine, tuple[int, int]]:
    qweight, qzeros, scales = module["qweight"], module["qzeros"], module["scales"]
    rows, width = qweight.shape[0], qweight.shape[1] * PER_WORD
    group = _padded_group(module, width, scales.shape[1], stated)
    groups = groups_of(width, group)

    def read_zeros(start: int, stop: int) -> Array:
        return unpack(as_bytes(qzeros.rows(start, stop)), BITS, groups)

    def read_scales(start: int, stop: int) -> Array:
        return scales.rows(start, stop)[:, :groups]

    factor = Factor(scales.dtype, groups, read_scales)
    return Affine(BITS, group, byte_rows(qweight), (factor,), read_zeros), (rows, width)


def _fast(module: Module, stated: Mapping[str, Any]) -> tuple[Affine, tuple[int, int]]:
    qweight, scales = module["qweight"], module["scales"]
    zeros = zeros_part(module)
    rows, width = FAST_ROWS * qweight.shape[0], qweight.shape[1]
    if zeros is None or width % FAST_COLUMNS:
        raise module.fail(f"has {width} columns, which gemv_fast stores by {FAST_COLUMNS}")
    group = _padded_group(module, width, scales.shape[0], stated)
    groups = groups_of(width, group)

    codes = in_runs(FAST_ROWS, lambda first, last: fast_rows(qweight.rows(first, last)))
    factors, offsets = (turned_factor(scales, groups),), (turned_factor(zeros, groups),)
    return Affine(BITS, group, codes, factors, 0, offsets), (rows, width)


def fast_rows(words: Array) -> Array:
    """GEMV-fast's codes, int16 [n, width] → packed codes uint8 [4 · n, width / 2].

    Of each 64 columns, a row has 32 bytes, then the next of four rows has its own. Of each 32 columns, column
    8 · a + 2 · b + c is nibble 8 · b + 4 · c + a.
    """
    count, width = words.shape
    chunks = as_bytes(words).reshape(count, width // FAST_COLUMNS, FAST_ROWS, FAST_COLUMNS // 2)
    stored = chunks.transpose(0, 2, 1, 3).copy().view("<u4")  # b; its bytes are c, a // 2
    low, high = np.uint32(0x0F0F), np.uint32(0xF0F0)
    even = stored & low | stored >> np.uint32(12) & high
    odd = stored >> np.uint32(4) & low | stored >> np.uint32(16) & high
    pairs = (even | odd << np.uint32(16)).view(np.uint8).reshape(-1, 4, 2, 2)  # run, b, a % 2, a // 2
    codes: Array = pairs.transpose(0, 3, 2, 1).reshape(FAST_ROWS * count, width * BITS // BYTE_BITS)
    return codes


def _claims(module: Module, settings: Settings) -> bool:
    announced = settings.quantization.get("quant_method") == "awq"
    return layout(module) is not None or (announced and "qweight" in module.parts)


SCHEME = Scheme(
    name="AWQ",
    methods=frozenset({"awq"}),
    marks=("qweight",),
    parts=frozenset({"qweight", "qzeros", "scaled_zeros", "scales"}),
    claims=_claims,
    read=_read,
)
