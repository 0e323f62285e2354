"""GPTQ by its definition: w[n, k] = scale[g, n] · (code[k, n] - zero[g, n]), with g the group of column k.

Codes of column n run down qweight int32 [K · bits / 32, N], the lowest bits of a word first; zero points run along
the rows of qzeros int32 [groups, N · bits / 32] in the same way. The format "gptq", and no format at all, stores a zero
point less one; "gptq_v2" and AutoRound's own packing store it as it is. In "gptq_p", 32 codes of 3, 5, 6 or 7 bits are
planes: the lowest bits of all of them, then the next ones.
Sources: https://github.com/ModelCloud/GPTQModel (gptqmodel/nn_modules/qlinear, utils/planar_packing.py),
https://github.com/intel/auto-round (auto_round/inference/backend.py, export/export_to_autoround).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from truecast.proof.operators import Array
from truecast.proof.source.words import Parts, Stated, fields, floats, integers

PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}
WORD = 32


def weight(module: str, parts: Parts, stated: Stated) -> Array:
    """The weight [N, K] in float32."""
    said = settings(module, stated)
    scales, words, zeros = floats(parts["scales"]), integers(parts["qweight"]), integers(parts["qzeros"])
    bits, rows, index = int(said["bits"]), scales.shape[1], parts.get("g_idx")
    width = len(index) if index is not None and len(index) else words.shape[0] * WORD // bits
    planes = str(said.get("checkpoint_format") or said.get("format")) == "gptq_p" and bits in PLANES
    codes = (_planes if planes else fields)(words.T, bits, width).T
    groups = np.arange(width) // _group(said, width, len(scales))
    if index is not None and len(index):
        groups = integers(index)
    points = _zeros(zeros, bits, rows, planes, said)
    values: Array = (codes.astype(np.float32) - points[groups]) * scales[groups]
    return values.T


def settings(module: str, stated: Stated) -> dict[str, Any]:
    """What the configuration says of one module: `dynamic` of GPTQModel, `extra_config` of AutoRound."""
    said = dict(stated)
    for pattern, values in (stated.get("dynamic") or {}).items():
        if re.match(pattern[2:] if pattern[:2] in ("+:", "-:") else pattern, module):
            said |= values if isinstance(values, Mapping) else {}
            break
    rules = stated.get("extra_config") or {}
    names = [name for name in (module, *rules) if name in rules and (name == module or re.fullmatch(name, module))]
    return said | ({k: v for k, v in rules[names[0]].items() if v is not None} if names else {})


def _group(said: Stated, width: int, groups: int) -> int:
    group = said.get("group_size", -1)
    return group if isinstance(group, int) and group > 0 and -(-width // group) == groups else -(-width // groups)


def _planes(words: Array, bits: int, count: int) -> Array:
    """Codes of planes, [rows, n · bits words] → uint8 [rows, count]."""
    blocks = np.ascontiguousarray(words).reshape(len(words), -1, bits)
    result = np.zeros((len(words), blocks.shape[1], WORD), np.uint8)
    first = 0
    for plane in PLANES[bits]:
        part = np.ascontiguousarray(blocks[:, :, first : first + plane])
        result |= fields(part, plane, WORD) << np.uint8(first)
        first += plane
    return result.reshape(len(words), -1)[:, :count]


def _zeros(words: Array, bits: int, rows: int, planes: bool, said: Stated) -> Array:
    """Zero points, float32 [groups, N]."""
    label = str(said.get("checkpoint_format") or said.get("format") or "")
    packing = str(said.get("packing_format", "auto_round"))
    own = said.get("quant_method") in ("auto-round", "intel/auto-round") and "auto_gptq" not in packing
    if planes or own or label in ("gptq_v2", "gptq_p"):
        return (_planes if planes else fields)(words, bits, rows).astype(np.float32)
    if "gptqmodel" in str((said.get("meta") or {}).get("quantizer", "")).lower() and WORD % bits == 0:
        one = sum(1 << place for place in range(0, WORD, bits))  # it took one from every field of a word at once
        return fields(words.view(np.uint32) + np.uint32(one), bits, rows).astype(np.float32)
    stored = fields(words, bits, rows).astype(np.float32)
    middle = float(1 << (bits - 1))
    unlabelled = not label and "packing_format" not in said and said.get("sym") is not False
    if unlabelled and (stored == middle).all():  # symmetric, and stored as it is
        return stored
    return (stored + 1) % float(1 << bits)
