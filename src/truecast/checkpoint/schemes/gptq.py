"""GPTQ: the layout of AutoGPTQ and GPTQModel, also written by AutoRound and Optimum.

Data flow: qweight int32 [width · bits / 32, rows], qzeros int32 [groups, rows · bits / 32], scales [groups, rows] and
g_idx int32 [width] → an `Affine` whose rows are the columns of qweight.

The tensors do not say two things, which the configuration must: whether a zero point z is stored as z - 1 ("v1", the
default) or as z ("v2"), and how codes of 5, 6 and 7 bits lie. Everything else is read from the shapes.
Sources: GPTQModel 7.7.0 (nn_modules/qlinear, utils/model.py, utils/planar_packing.py), AutoGPTQ 0.7.1, AutoRound 0.16.1
(utils/bit_packing.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from truecast.checkpoint.bits import BYTE_BITS, packed_bytes
from truecast.checkpoint.encoding import Affine, groups_of
from truecast.checkpoint.model import Array, Reader, StoredTensor
from truecast.checkpoint.schemes.grids import column_order, group_of, turned_factor
from truecast.checkpoint.schemes.model import Module, Reading, Scheme, Settings
from truecast.checkpoint.schemes.parts import common_value, in_runs
from truecast.checkpoint.schemes.words import (
    BLOCK_CODES,
    WORD_BITS,
    as_bytes,
    columns_of,
    joined,
    reordered,
    slot_of,
    turned,
    widened,
    words_of,
)
from truecast.errors import InputError

GPTQ_PARTS = frozenset({"qweight", "qzeros", "scales", "g_idx"})
EMBEDDING = re.compile(r"(^|\.)(wte|wpe|embd|\w*embed(ding|dings|_tokens|_in)?)$")
"""How authors name tables of embeddings."""
WIDTHS = frozenset({2, 3, 4, 8})
"""Widths of codes, in bits, that every writer stores as one stream."""


class Zeros(Enum):
    """How zero points are stored."""

    PLAIN = "v2: as they are"
    LESS_ONE = "v1: each less one, within its own bits"
    WORDS_LESS_ONE = "v1 of GPTQModel: less one of every field by a subtraction of whole words, which borrows"


@dataclass(frozen=True)
class Convention:
    """What the tensors do not say.

    stated: whether the configuration names it, or it is the default. plane_widths: widths, in bits, that are stored as
    bit planes. stream_widths: those stored as one stream.
    """

    zeros: Zeros
    stated: bool = True
    plane_widths: frozenset[int] = frozenset()
    stream_widths: frozenset[int] = WIDTHS


def _read(module: Module, settings: Settings) -> Reading:
    """One GPTQ module.

    Raises:
        InputError: tensors that contradict each other or the configuration, or a layout that is not read.
    """
    if "B" in module.parts:
        raise _marlin(module)
    overrides = override(settings.quantization.get("dynamic") or {}, module.name)
    stated = {**settings.quantization, **overrides}
    return Reading((weight(module, settings, stated, convention(module, stated), "GPTQ"),))


def convention(module: Module, stated: Mapping[str, Any]) -> Convention:
    """The convention that a configuration states.

    Raises:
        InputError: a format that is not read, or a model that needs more than its weights.
    """
    label = str(stated.get("checkpoint_format") or stated.get("format") or "").lower()
    if label == "marlin" or stated.get("is_marlin_format"):
        raise _marlin(module)
    if stated.get("rotation"):
        raise module.fail(
            f"was rotated ({stated['rotation']}), and its products need a Hadamard transform that no tensor holds",
            "quantize the model without rotation",
        )
    if "autoround_version" in stated:
        return Convention(Zeros.LESS_ONE, bool(label), stream_widths=frozenset(range(2, 9)))
    known = {
        "": Convention(_v1(stated), stated=False),
        "gptq": Convention(_v1(stated)),
        "gptq_v2": Convention(Zeros.PLAIN),
        "gptq_p": Convention(Zeros.PLAIN, plane_widths=frozenset({3, 5, 6, 7})),
    }
    if label not in known:
        raise module.fail(
            f"is stored in the GPTQ format {label!r}, which is not known; known are {', '.join(filter(None, known))}",
            "save it in one of these",
        )
    return known[label]


def _marlin(module: Module) -> InputError:
    return module.fail(
        "is stored in Marlin's layout, which one kernel needs", "give the checkpoint in GPTQ's own layout"
    )


def _v1(stated: Mapping[str, Any]) -> Zeros:
    meta = stated.get("meta")
    makers = meta.get("quantizer", ()) if isinstance(meta, Mapping) else ()
    return Zeros.WORDS_LESS_ONE if "gptqmodel" in str(makers).lower() else Zeros.LESS_ONE


def override(rules: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What GPTQModel's `dynamic` says of one module: the values of the first pattern that matches its name.

    Patterns begin with "+:" or nothing; those with "-:" leave a module in float, which its tensors show.
    """
    for pattern, values in rules.items():
        try:
            matches = re.match(pattern.removeprefix("-:").removeprefix("+:"), name)
        except re.error as error:
            raise InputError(
                f"quantization_config.dynamic has the pattern {pattern!r}, which cannot be read ({error}); correct it."
            ) from error
        if matches:
            return values if isinstance(values, Mapping) and not pattern.startswith("-:") else {}
    return {}


@dataclass(frozen=True)
class _Shape:
    """What the shapes say: a weight [rows, width] of `bits`, with `groups` per row."""

    bits: int
    rows: int
    width: int
    groups: int


def weight(
    module: Module, settings: Settings, stated: Mapping[str, Any], convention: Convention, library: str
) -> StoredTensor:
    """The weight of a module in GPTQ's layout; `stated` is what the configuration says of this very module.

    Raises:
        InputError: as `read`.
    """
    shape = _shape(module, stated)
    _require_linear(module, settings, shape)
    if shape.bits not in convention.plane_widths | convention.stream_widths:
        raise module.fail(
            f"has codes of {shape.bits} bits, and its configuration does not say how these lie in their words",
            'save it with GPTQModel as "gptq_p", or with AutoRound',
        )
    group, order = _groups(module, shape, stated)
    slot = slot_of(shape.bits)
    planes = shape.bits in convention.plane_widths
    encoding = Affine(
        bits=slot,
        group=group,
        codes=_codes(module["qweight"], shape, planes, order),
        scales=(turned_factor(module["scales"], shape.groups),),
        zero=_zero(module, shape, convention, stated),
        order=order,
    )
    words = f"{library} {shape.bits}-bit, group {group}" + (", act-order" if order is not None else "")
    return module.encoded(encoding, (shape.rows, shape.width), words, "qweight")


def _shape(module: Module, stated: Mapping[str, Any]) -> _Shape:
    qweight, qzeros, scales, g_idx = module["qweight"], module["qzeros"], module["scales"], module.get("g_idx")
    if not fits(module):
        shapes = ", ".join(f"{name} {part.stored_as} {list(part.shape)}" for name, part in module.parts.items())
        raise module.fail(f"has tensors of types and shapes that no GPTQ layout has ({shapes})")
    groups, rows = scales.shape
    indexed = g_idx.shape[0] if g_idx is not None and g_idx.shape[0] else None
    possible = [
        bits
        for bits in range(2, 9)
        if qzeros.shape[1] == words_of(rows, bits) and qweight.shape[0] * WORD_BITS % bits == 0
        if indexed is None or qweight.shape[0] == words_of(indexed, bits)
    ]
    bits = possible[0] if len(possible) == 1 else stated.get("bits")
    if bits not in possible:
        raise module.fail(
            f"has qweight {list(qweight.shape)}, qzeros {list(qzeros.shape)} and scales {list(scales.shape)}, which no "
            f"width of codes explains (quantization_config says {stated.get('bits')} bits)"
        )
    return _Shape(bits, rows, indexed or qweight.shape[0] * WORD_BITS // bits, groups)


def fits(module: Module) -> bool:
    """Whether the shapes are GPTQ's: as many columns of words as of scales, and int32 throughout."""
    qweight, qzeros, scales = module.get("qweight"), module.get("qzeros"), module.get("scales")
    if qweight is None or qzeros is None or scales is None:
        return False
    matrices = all(len(part.shape) == 2 and part.size for part in (qweight, qzeros, scales))
    words = qweight.dtype == np.int32 and qzeros.dtype == np.int32 and scales.dtype.kind != "i"
    return matrices and words and qweight.shape[1] == scales.shape[1] and qzeros.shape[0] == scales.shape[0]


def _require_linear(module: Module, settings: Settings, shape: _Shape) -> None:
    """GPTQModel stores a quantized embedding untransposed, with groups along the vocabulary.

    It goes by the name: a projection may well be as wide as the vocabulary is long.
    """
    model = settings.model.get("text_config") or settings.model
    if EMBEDDING.search(module.name) is not None and shape.rows == model.get("hidden_size"):
        raise module.fail(
            "is an embedding with groups along the vocabulary, which no table of rows can hold",
            "quantize the model without its embedding",
        )


def _groups(module: Module, shape: _Shape, stated: Mapping[str, Any]) -> tuple[int, Array | None]:
    """The length of a group, and the order of the columns if groups are not neighbours."""
    g_idx = module.get("g_idx")
    if g_idx is None or not g_idx.shape[0]:
        if stated.get("desc_act") and shape.groups > 1:
            raise module.fail("is said to be in act-order (desc_act), but has no g_idx")
        return group_of(module, shape.width, shape.groups, stated), None
    index = g_idx.read()
    group = int(np.count_nonzero(index == index.min()))
    if groups_of(shape.width, group) != shape.groups:
        raise module.fail(
            f"has a g_idx that does not divide {shape.width} columns into {shape.groups} groups of a size"
        )
    return group, column_order(module, "g_idx", index, shape.width, group)


def _codes(qweight: StoredTensor, shape: _Shape, planes: bool, order: Array | None) -> Reader:
    slot = slot_of(shape.bits)
    length = packed_bytes(shape.width, slot)
    expand = joined if planes else widened

    def read_codes(start: int, stop: int) -> Array:
        words = qweight.rows()[:, start:stop]
        if order is not None and slot == shape.bits:
            return reordered(lambda a, b: columns_of(words[:, a:b].view(np.uint32)), stop - start, slot, order)
        codes = expand(as_bytes(turned(words)), shape.bits, slot)[:, :length]
        return codes if order is None else reordered(lambda a, b: turned(codes[a:b]), stop - start, slot, order)

    return read_codes


def _zero(module: Module, shape: _Shape, convention: Convention, stated: Mapping[str, Any]) -> int | Reader:
    """The zero point: one number where all are alike, as they are in a symmetric checkpoint."""
    qzeros = module["qzeros"]
    one = common_value(qzeros, _zero_points(qzeros.rows(0, 1), shape.bits, convention)[0, : shape.rows])
    if one is None:
        return _zeros(qzeros, shape, convention)
    middle = 1 << (shape.bits - 1)
    plain = convention.zeros is Zeros.PLAIN
    if one == middle or one != middle + (-1 if plain else 1) or stated.get("sym") is False:
        return one
    if convention.stated:
        named, other = ("v2", "v1") if plain else ("v1", "v2")
        raise module.fail(
            f"has the zero point {one} everywhere, if it is stored as the configuration says ({named}), and the usual "
            f"{middle} if it is not ({other})",
            "correct checkpoint_format in quantization_config (v1 is gptq, v2 is gptq_v2), or set sym to false",
        )
    return middle


def _zeros(qzeros: StoredTensor, shape: _Shape, convention: Convention) -> Reader:
    def read_zeros(first: int, last: int) -> Array:
        return turned(_zero_points(qzeros.rows()[:, first * shape.bits : last * shape.bits], shape.bits, convention))

    return in_runs(BLOCK_CODES, read_zeros)


def _zero_points(words: Array, bits: int, convention: Convention) -> Array:
    """Words of whole blocks, int32 [groups, words] → zero points uint8 [groups, codes]."""
    mask, slot = np.uint8((1 << bits) - 1), BYTE_BITS
    if bits in convention.plane_widths:
        return joined(as_bytes(words), bits, slot)
    if convention.zeros is Zeros.WORDS_LESS_ONE and WORD_BITS % bits == 0:
        ones = sum(1 << place for place in range(0, WORD_BITS, bits))
        return widened(as_bytes(words.view(np.uint32) + np.uint32(ones)), bits, slot)
    zeros = widened(as_bytes(words), bits, slot)
    return zeros if convention.zeros is Zeros.PLAIN else zeros + np.uint8(1) & mask


def _claims(module: Module, settings: Settings) -> bool:
    marlin = module.parts.keys() >= {"B", "s"}
    return marlin or fits(module) or ("qweight" in module.parts and settings.quantization.get("quant_method") == "gptq")


SCHEME = Scheme(
    name="GPTQ",
    methods=frozenset({"gptq"}),
    marks=("B", "qweight"),
    parts=GPTQ_PARTS | {"B", "s", "workspace"},
    claims=_claims,
    read=_read,
)
