"""What a quantizer cost, measured: the noise in every weight, and how far the logits moved on a text of the user's.

Signal to noise is 10 · log10(Σ w² / Σ (held - w)²) in dB, over all values of one weight: 6 dB are one bit. It is read
back from the artifact's own file, a run of rows at a time. KL(original ‖ artifact) is over the calibration text, which
the user chose, rather than over the proof's own texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from truecast.artifact import Check, Manifest
from truecast.calibration.libraries import FOLDING
from truecast.checkpoint.model import Checkpoint
from truecast.proof.held import HeldWeight, held_weights, load_graph
from truecast.proof.measures import drift
from truecast.proof.operators import Array
from truecast.proof.parity import FORMAT_KL, graph_logits, price_checks, real_positions, reference_logits
from truecast.proof.points import Point
from truecast.proof.reference import Reference
from truecast.proof.tally import check
from truecast.proof.weights import pairs
from truecast.runtime.decoder import Decoder
from truecast.runtime.text import TextCodec
from truecast.weights.sources import Sources

NAME = "price of the format, calibration text"
DECIMALS = 2
"""Of a signal-to-noise ratio in dB."""
LOGITS = 1 << 27
"""Most logits of the original that are kept to compare with: 512 MiB of float32."""
POSITIONS = 512
"""Most positions of the text that are compared; enough for the mean KL to settle to about a tenth."""
ROW = 128
"""Most positions of one text."""

TIER = "static"
LEAST_RATIO = 6.0
"""dB of a weight that calibration made, at least: 4 bits leave 15 to 20, and a wrong scale or layout less than 3."""
EXACT_RATIO = 150.0
"""dB that stand for no noise at all: float32 itself has about that much."""

Progress = Callable[[int, int], None]
Noise = dict[str, float | None]


def signal_to_noise(
    reference: Reference, weights: Mapping[str, HeldWeight], original: Sources, progress: Progress | None = None
) -> Noise:
    """dB of every quantized weight against the values in `original`, by the name of its parameter; None if exact."""
    result: Noise = {}
    known = original.parameters
    chosen = [weight for weight in weights.values() if weight.quantization is not None and weight.parameter in known]
    for index, weight in enumerate(chosen):
        signal = noise = 0.0
        for _, values, held in pairs(reference, original[weight.parameter], weight):
            signal += float(np.square(values, dtype=np.float64).sum())
            noise += float(np.square(held.astype(np.float32) - values, dtype=np.float64).sum())
        ratio = 10 * math.log10(signal / noise) if signal and noise else None
        result[weight.parameter] = None if ratio is None else round(ratio, DECIMALS)
        if progress:
            progress(index + 1, len(chosen))
    return result


def likeness_check(noise: Noise) -> Check:
    """Whether every weight that a library made still is like the source's, where its own checkpoint is not at hand."""
    ratios = {name: math.inf if ratio is None else ratio for name, ratio in noise.items()}
    worst = min(ratios, key=lambda name: ratios[name])
    measured = min(ratios[worst], EXACT_RATIO)
    detail = f"worst: {worst}; {len(noise)} weights"
    return check(TIER, "weights are like the source's", measured, LEAST_RATIO, "dB", detail, at_least=True)


def measured_noise(folder: Path, checkpoint: Checkpoint, manifest: Manifest, trust_remote_code: bool = False) -> Noise:
    """`signal_to_noise` of an artifact that is not proven: no model is run, and none is loaded."""
    if manifest.settings.get("method") in FOLDING:
        return {}
    reference = Reference.build(checkpoint, trust_remote_code, weights=False)
    weights = held_weights(load_graph(folder, manifest.graph.file), manifest.weights, reference.sources)
    return signal_to_noise(reference, weights, reference.sources)


def text_points(folder: Path, texts: Sequence[str], vocabulary: int, context: int | None) -> list[Point]:
    """The beginning of one text after the other, each a point, until there are enough positions.

    Raises InputError when the artifact has no tokenizer.
    """
    codec, longest, left = TextCodec.open(folder), min(ROW, context or ROW), min(POSITIONS, LOGITS // vocabulary)
    points: list[Point] = []
    for text in texts:
        ids = [token for token in codec.encode(text)[: min(longest, left)] if token < vocabulary]
        if len(ids) > 1:
            tokens = np.array([ids], np.int64)
            points.append(Point(f"calibration text {len(points) + 1}", tokens, np.ones_like(tokens), (len(ids),)))
            left -= len(ids)
    return points


def original_logits(reference: Reference, points: Sequence[Point]) -> list[list[Array]]:
    """The author's logits with the weights it has now, for every point."""
    return [list(reference_logits(reference, point)) for point in points]


def text_price(decoder: Decoder, points: Sequence[Point], originals: Sequence[Sequence[Array]]) -> list[Check]:
    """Mean KL on the calibration text; nothing without one."""
    drifts = [
        drift(got, want, real)
        for point, wanted in zip(points, originals, strict=True)
        for got, want, real in zip(graph_logits(decoder, point), wanted, real_positions(point), strict=True)
    ]
    return price_checks(NAME, drifts, FORMAT_KL, None) if points else []
