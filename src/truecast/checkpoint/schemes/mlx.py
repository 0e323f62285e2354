"""MLX: Apple's library, as mlx_lm.convert writes it.

Data flow: weight uint32 [out, in · bits / 32], a stream of codes, the lowest bits first; scales and biases float
[out, in / group] → w = code · scale + bias. Modes of small floats have no biases, and scales in bytes. The settings say
how long a group is, for all modules or for one by its name; it follows from the shapes how many bits a code has.
Source: MLX 0.32 (mlx.core.quantize; mlx/backend/cpu/quantized.cpp), mlx_lm (utils.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from truecast.checkpoint.bits import packed_bytes
from truecast.checkpoint.encoding import Affine, Codebook, Encoding, Factor
from truecast.checkpoint.model import Array, Reader, StoredTensor
from truecast.checkpoint.schemes.grids import BYTE, E4M3, row_factor
from truecast.checkpoint.schemes.minifloats import E2M1
from truecast.checkpoint.schemes.model import Module, Reading, Scheme, Settings
from truecast.checkpoint.schemes.parts import byte_rows
from truecast.checkpoint.schemes.words import WORD_BITS, slot_of, widened

METHOD = "mlx"
AFFINE = "affine"
GROUP, BITS = 64, 4
"""mlx_lm's own defaults."""
WIDTHS = frozenset({2, 3, 4, 5, 6, 8})
WORD = np.dtype("<u4")
FLOAT8: Array = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)
TABLES: Mapping[str, tuple[int, Array]] = {"mxfp4": (4, E2M1), "nvfp4": (4, E2M1), "mxfp8": (8, FLOAT8)}
"""Bits of a code, and the floats that codes stand for, by the mode."""


def _read(module: Module, settings: Settings) -> Reading:
    stated = {**settings.quantization, **_override(module.name, settings.quantization)}
    mode = str(stated.get("mode") or AFFINE)
    group, bits = int(stated.get("group_size") or GROUP), int(stated.get("bits") or BITS)
    if mode != AFFINE and mode not in TABLES:
        raise module.fail(f"is in the mode {mode!r} of MLX; known are {', '.join((AFFINE, *TABLES))}", "give another")
    rows, words = module.matrix("weight")
    groups = module.matrix("scales")[1]
    width = groups * group
    if module.matrix("scales")[0] != rows or words * WORD_BITS != width * bits or bits not in WIDTHS:
        raise module.fail(
            f"has {words} words and {groups} scales in a row, which {bits} bits in groups of {group} do not explain; "
            "the quantization settings of config.json belong to another checkpoint"
        )
    encoding = _affine(module, bits, group, groups) if mode == AFFINE else _floats(module, mode, bits, group, groups)
    return Reading((module.encoded(encoding, (rows, width), f"MLX {mode} {bits}-bit, group {group}", "weight"),))


def _override(name: str, stated: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the settings say of one module by its name."""
    own = stated.get(name)
    return own if isinstance(own, Mapping) else {}


def _affine(module: Module, bits: int, group: int, groups: int) -> Encoding:
    if module["biases"].shape != module["scales"].shape:
        raise module.fail("has not one bias for each scale")
    scales, biases = (row_factor(module[part], 1, groups) for part in ("scales", "biases"))
    return Affine(slot_of(bits), group, _codes(module["weight"], bits, groups * group), (scales,), 0, (biases,))


def _floats(module: Module, mode: str, bits: int, group: int, groups: int) -> Encoding:
    width, table = TABLES[mode]
    if bits != width or module["scales"].dtype != BYTE or "biases" in module.parts:
        raise module.fail(f"has not the tensors that MLX writes in the mode {mode}")
    factor = _float8_factor(module["scales"], groups) if mode == "nvfp4" else row_factor(module["scales"], 1, groups)
    return Codebook(bits, table, group, byte_rows(module["weight"]), (factor,))


def _float8_factor(scales: StoredTensor, groups: int) -> Factor:
    return Factor(E4M3, groups, lambda start, stop: np.ascontiguousarray(scales.rows(start, stop)).view(E4M3))


def _codes(stored: StoredTensor, bits: int, width: int) -> Reader:
    stream, slot = byte_rows(stored), slot_of(bits)

    def read(start: int, stop: int) -> Array:
        return widened(stream(start, stop), bits, slot)[:, : packed_bytes(width, slot)]

    return read


def _claims(module: Module, settings: Settings) -> bool:
    weight, scales = module.get("weight"), module.get("scales")
    return weight is not None and weight.dtype == WORD and scales is not None


SCHEME = Scheme(
    name="MLX",
    methods=frozenset({METHOD}),
    marks=("biases", "scales"),
    parts=frozenset({"weight", "scales", "biases"}),
    claims=_claims,
    read=_read,
)
