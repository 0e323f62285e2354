"""A quantized key/value cache, checked by itself: its scales, its codes, and the attention that reads them.

| check | compared with | rule |
|---|---|---|
| scales of the cache, calibrated | what the author's keys and values on that text give | a channel's error is alike |
| scales of the cache, the checkpoint's | the checkpoint's | equal |
| cache holds the rounded keys and values | what the operator was given, by its scales | half a step; or the last code |
| attention reads what the codes stand for | the operator in NumPy, on the decoded cache | the tight rule |
| clipped keys and values | the author's, on other text, near and far | a share |

Everything else of the graph is proven with a float cache (`float_cache`), and then the price of the codes is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from truecast.artifact import Check, GraphInfo, Manifest
from truecast.calibration.cache import LARGEST, calibrated_scales, squared_error, token_rows
from truecast.calibration.caching import FROM_PROSE, OWN, SETTING
from truecast.calibration.prose import PROSE
from truecast.calibration.stored_scales import by_layer, spread
from truecast.proof.author_states import states_of
from truecast.proof.cuts import tapped
from truecast.proof.feeds import run_feeds
from truecast.proof.float_cache import ATTENTION, PAST, PRESENT, SCALES
from truecast.proof.operators import Array, attend, cache_values, split_heads, turned
from truecast.proof.parity import RELATIVE
from truecast.proof.points import Point
from truecast.proof.reference import Reference
from truecast.proof.sessions import RUN_ERRORS, session_of
from truecast.proof.tally import Worst, broken, check, counted, reported
from truecast.runtime.cache import cache_tensors, empty_state
from truecast.states import PARTS, StateTensor
from truecast.weights.cache import layer_of

TIER = "cache"
ERROR_RATIO = 2.0
"""Largest ratio of the squared errors that two scales make in a channel: scales √2 apart. Scales are calibrated on the
graph, whose int8 activations may move the farthest key by some percent, and with 4 bits by two steps of the choice; a
scale that is doubled, or another layer's, is off by a factor of four in some channel."""
HALF_ULP = {"float32": 2.0**-20, "float16": 2.0**-7}
"""What a rotation of its own leaves in a key, in parts of it, by the dtype that attention computes in."""
HALF_RELATIVE = 1e-2
"""Limit of attention in float16, in parts of its largest output."""
CLIPPED: Mapping[int, float] = {8: 1e-3, 4: 5e-2}
"""Largest share of keys and values beyond the last code, by bits. 8 bits have room to spare: what is clipped there was
not foreseen. 4 bits have not, and clip what is rare so that the rest is finer."""
FAR = 1 << 15
"""A position far beyond every calibration text."""
RATIO_FLOOR = 1e-12
"""Squared errors below this are none, in parts of the largest of the tensor."""


@dataclass(frozen=True)
class _Layer:
    """One attention operator with its scales, float32 [heads, 1, width]."""

    number: int
    node: ir.Node
    scales: tuple[Array, Array]
    bits: int

    @classmethod
    def of(cls, node: ir.Node) -> _Layer | None:
        """None where the operator has no constant scales for every channel, or does not say how many bits."""
        bits, inputs = node.attributes.get("kv_cache_bit_width"), node.inputs[min(SCALES) : max(SCALES) + 1]
        constants = [value.const_value for value in inputs if value is not None and value.const_value is not None]
        arrays = [constant.numpy().astype(np.float32) for constant in constants]
        if bits is None or len(arrays) < len(SCALES) or any(array.ndim != 4 for array in arrays):
            return None
        return cls(layer_of(node), node, (arrays[0][0], arrays[1][0]), bits.as_int())


def cache_checks(
    folder: Path,
    model: ir.Model,
    manifest: Manifest,
    reference: Reference,
    texts: Sequence[str],
    points: Sequence[Point],
) -> list[Check]:
    """Every check of the cache of a graph that keeps codes.

    Args:
        folder: the artifact.
        model: its graph as shipped.
        manifest: of the artifact.
        reference: the author's model with the weights that the artifact holds.
        texts: what the scales were calibrated on, if it is not truecast's own text; nothing when that is not at hand.
        points: what the operators are run on; the first real text of them tells how much is clipped.
    """
    found = [_Layer.of(node) for node in model.graph if node.op_type == ATTENTION]
    layers = sorted((layer for layer in found if layer is not None), key=lambda layer: layer.number)
    if len(layers) < len(found) or not layers:
        return [broken(TIER, "scales of the cache", "an attention operator has no constant scales, or no bits")]
    return [
        *_scale_checks(folder, model, manifest, reference, layers, texts),
        *_operator_checks(folder, model, manifest.graph, layers, points),
        _clipping_check(manifest, reference, layers, next((p for p in points if p.text), points[0])),
    ]


# Scales -------------------------------------------------------------------------------------------------------------


def _scale_checks(
    folder: Path,
    model: ir.Model,
    manifest: Manifest,
    reference: Reference,
    layers: Sequence[_Layer],
    texts: Sequence[str],
) -> list[Check]:
    origin = manifest.settings.get(SETTING)
    if origin == OWN:
        return [_own_scales(reference, layers)]
    chosen = PROSE if origin == FROM_PROSE else texts
    if not chosen:
        return [reported(TIER, "scales of the cache", 0.0, "", "the calibration text is not at hand; not made again")]
    info = manifest.graph
    rows = token_rows(folder, chosen, info.vocab_size, info.context_length)
    wanted = calibrated_scales(partial(_author_run, reference), model, rows, layers[0].bits)
    errors: dict[str, tuple[Array, Array, float]] = {}
    for row in rows:
        for name, values in _author_run(reference, row):
            layer, index = _place(name)
            pair = (layers[layer].scales[index][:, 0], getattr(wanted[layers[layer].number], PARTS[index]))
            got, want, largest = errors.get(name, (0, 0, 0.0))
            more = [squared_error(values, scale, layers[layer].bits) for scale in pair]
            errors[name] = (got + more[0], want + more[1], max(largest, float(np.abs(values).max())))
    worst = Worst()
    for name, (got, want, largest) in errors.items():
        floor = RATIO_FLOOR * max(largest, 1.0) ** 2
        ratio = (got + floor) / (want + floor)
        worst.add(float(np.maximum(ratio, 1 / ratio).max()), ERROR_RATIO, name)
    detail = f"worst: {worst.where}; {2 * len(layers)} scales, {sum(map(len, rows))} tokens {origin}"
    name = "scales of the cache against the author's keys and values"
    return [check(TIER, name, worst.value, ERROR_RATIO, "of the squared error", detail)]


def _own_scales(reference: Reference, layers: Sequence[_Layer]) -> Check:
    stored, faults = by_layer(reference.sources.checkpoint), []
    for layer in layers:
        for part, scale in zip(PARTS, layer.scales, strict=True):
            tensor = stored.get(layer.number, {}).get(f"{part[0]}_scale")
            if tensor is None or not np.array_equal(spread(tensor, *scale.shape[::2])[:, None], scale):
                faults.append(f"the {part} scale of layer {layer.number}")
    return counted(TIER, "scales of the cache are the checkpoint's", faults, "scales", f"{2 * len(layers)} scales")


def _author_run(reference: Reference, row: Sequence[int]) -> Iterator[tuple[str, Array]]:
    """Keys and values [heads, length, width] behind a text, by the author's code, under the graph's names."""
    for number, pair in enumerate(_author_cache(reference, np.array([row], np.int64))):
        for part, array in zip(PARTS, pair, strict=True):
            yield StateTensor(number, part).past, array[0]


def _place(name: str) -> tuple[int, int]:
    """The layer and the part of a past's name."""
    tensor = StateTensor.named(name)
    assert tensor is not None
    return tensor.layer, PARTS.index(tensor.part)


def _author_cache(reference: Reference, tokens: Array, first: int = 0) -> list[tuple[Array, Array]]:
    """Keys and values [batch, heads, length, width] of every layer by the author's code, from position `first` on."""
    reference.reset()
    cache = reference.new_cache()
    where = np.broadcast_to(first + np.arange(tokens.shape[1], dtype=np.int64), tokens.shape)
    reference.step(cache, tokens, np.ones_like(tokens), np.ascontiguousarray(where), 1)
    held = {(state.layer, state.part): tensor.float().numpy() for state, tensor in states_of(cache).items()}
    layers = sorted({layer for layer, _ in held})
    return [(held[layer, "key"], held[layer, "value"]) for layer in layers]


# Operators ----------------------------------------------------------------------------------------------------------


def _operator_checks(
    folder: Path, model: ir.Model, info: GraphInfo, layers: Sequence[_Layer], points: Sequence[Point]
) -> list[Check]:
    assert info.cache is not None and info.cache.stands_for is not None
    dtype = info.cache.stands_for
    limit = RELATIVE if dtype == "float32" else HALF_RELATIVE
    rounding, reading, clipped, count = Worst(), Worst(), 0, 0
    names = ("cache holds the rounded keys and values", "attention reads what the codes stand for")
    try:
        for point in points:
            for number, arrays in enumerate(_runs(folder, model, info, layers, point)):
                for layer in layers:
                    seen = _Seen(layer, arrays)
                    where = f"layer {layer.number}, {point.name}, run {number + 1}"
                    rounding.add(seen.rounding(HALF_ULP[dtype]), 1.0, where)
                    reading.add(seen.reading(point.mask, arrays), limit, where)
                    clipped, count = clipped + seen.clipped, count + seen.count
    except RUN_ERRORS as error:
        return [broken(TIER, name, str(error).strip().splitlines()[0]) for name in names]
    said = f"worst: {rounding.where}; {clipped} of {count} beyond the last code"
    return [
        check(TIER, names[0], rounding.value, 1.0, "of half a step", said),
        check(TIER, names[1], reading.value, limit, "of the largest output", f"worst: {reading.where}"),
    ]


def _runs(
    folder: Path, model: ir.Model, info: GraphInfo, layers: Sequence[_Layer], point: Point
) -> Iterator[dict[str, Array]]:
    """Every run of a point: what the operators took and gave, by the names of the graph's values."""
    wanted = {v.name: v for layer in layers for v in (*layer.node.inputs, *layer.node.outputs) if v is not None}
    names = [name for name, value in wanted.items() if name and value.producer() is not None]
    constants = {n: v.const_value.numpy() for n, v in wanted.items() if n and v.const_value is not None}
    session = session_of(tapped(model, names), folder)
    tensors = cache_tensors(info)
    past = {tensor.past: empty_state(tensor, point.batch, 0) for tensor in tensors}
    taken = {value.name for value in session.get_inputs()}
    for run in point.runs():
        fed = {name: array for name, array in run_feeds(info, point, run).items() if name in taken} | past
        results = dict(zip(names, session.run(names, fed), strict=True))
        yield constants | past | results
        past = {tensor.past: results[tensor.present] for tensor in tensors}


class _Seen:
    """What one operator took and gave in one run."""

    def __init__(self, layer: _Layer, arrays: Mapping[str, Array]) -> None:
        node, self.layer, bits = layer.node, layer, layer.bits
        taken = [None if value is None else arrays.get(value.name or "") for value in node.inputs]
        taken += [None] * (max(SCALES) + 1 - len(taken))
        self.attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        heads, groups = int(self.attributes["num_heads"]), int(self.attributes["kv_num_heads"])
        assert taken[0] is not None and taken[5] is not None
        split = split_heads(taken[0], taken[1], taken[2], heads, groups)
        self.query, key, value = (x.astype(np.float32) for x in split)
        self.new, self.fresh = self.query.shape[2], (key, value)
        self.output = arrays[node.outputs[0].name or ""]
        self.codes = [arrays[node.outputs[index].name or ""] for index in PRESENT]
        self.held = [cache_values(x, s, bits) for x, s in zip(self.codes, layer.scales, strict=True)]
        self.old = [taken[index] for index in PAST]
        self.last, self.bias, self.sinks = taken[5], taken[10], taken[11]
        self.tables = (taken[7], taken[8]) if self.attributes.get("do_rotary") else None
        self.clipped, self.count = 0, 0

    def past(self, row: int) -> int:
        """Positions that a row held before this run."""
        behind = int(self.last[row]) + 1 - self.new
        return max(behind, 0) if self.codes[0].shape[2] > self.new else 0

    def rotated(self, x: Array, past: int) -> Array:
        """Heads [heads, new, width] as attention reads them."""
        if self.tables is None:
            return x
        tables = [table[past : past + self.new] for table in self.tables]  # type: ignore[index]
        return turned(x, tables[0], tables[1], bool(self.attributes.get("rotary_interleaved")))

    def rounding(self, ulp: float) -> float:
        """The largest distance of a new key or value from its code in half steps; infinite where old codes changed."""
        worst = 0.0
        for row in range(len(self.query)):
            past = self.past(row)
            key = self.rotated(self.fresh[0][row], past)
            for index, fresh in enumerate((key, self.fresh[1][row])):
                old = self.old[index]
                if old is None or not np.array_equal(old[row, :, :past], self.codes[index][row, :, :past]):
                    return np.inf
                worst = max(worst, self._distance(fresh, index, row, past, ulp))
        return worst

    def _distance(self, fresh: Array, index: int, row: int, past: int, ulp: float) -> float:
        scale, largest = self.layer.scales[index], LARGEST[self.layer.bits]
        held = self.held[index][row, :, past : past + self.new]
        ends = np.clip(fresh, (-largest - 1) * scale, largest * scale)
        self.clipped += int((np.abs(fresh - ends) > scale / 2).sum())
        self.count += fresh.size
        with np.errstate(divide="ignore", invalid="ignore"):  # a wrong scale may be 0
            shares = np.abs(ends - held) / (scale / 2 + np.abs(ends) * ulp)
        return float(shares.max()) if np.isfinite(shares).all() else np.inf

    def reading(self, mask: Array, arrays: Mapping[str, Array]) -> float:
        """The largest error of the operator's output at real positions, in parts of the largest."""
        error = scale = 0.0
        for row in range(len(self.query)):
            past = self.past(row)
            keys, values = (held[row] for held in self.held)
            bias = None if self.bias is None else self.bias[min(row, len(self.bias) - 1)].astype(np.float32)
            states = self.rotated(self.query[row], past)
            want = attend(states, keys, values, past, bias, self.sinks, self.attributes)
            got = self.output[row].reshape(self.new, want.shape[0], -1).transpose(1, 0, 2).astype(np.float32)
            real = mask[row, self.codes[0].shape[2] - self.new : self.codes[0].shape[2]] == 1
            if self.tables is not None or self.bias is None:  # rows padded on the right: their own positions come first
                real = np.arange(self.new) < int(self.last[row]) + 1 - past
            if real.any():
                error = max(error, float(np.nan_to_num(np.abs(got - want)[:, real], nan=np.inf).max()))
                scale = max(scale, float(np.abs(want[:, real]).max()))
        return error / (scale or 1.0)


# Clipping -----------------------------------------------------------------------------------------------------------


def _clipping_check(manifest: Manifest, reference: Reference, layers: Sequence[_Layer], point: Point) -> Check:
    """The share of the author's keys and values beyond the last code, near the start and far from it."""
    bits, context = layers[0].bits, manifest.graph.context_length
    far = max(0, min(FAR, (context or FAR) - point.tokens.shape[1]))
    shares = {}
    for what, first in (("from position 0", 0), (f"from position {far}", far)):
        held = _author_cache(reference, point.tokens, first)
        beyond = [
            np.abs(held[layer.number][index]) > scale * (LARGEST[bits] + 1)
            for layer in layers
            for index, scale in enumerate(layer.scales)
        ]
        shares[what] = float(sum(map(np.sum, beyond))) / sum(x.size for x in beyond)
    name, detail = "clipped keys and values", ", ".join(f"{share:.1e} {what}" for what, share in shares.items())
    if max(shares.values()) > CLIPPED[bits]:
        detail += "; more text, given with --calibration, reaches further"
    if manifest.settings.get(SETTING) == OWN:  # no choice of ours
        return reported(TIER, name, max(shares.values()), "of them", detail)
    return check(TIER, name, max(shares.values()), CLIPPED[bits], "of them", detail)
