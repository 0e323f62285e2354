"""What one proof of a decoder compares: the artifact's graph and weights, opened, and the author's model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from truecast.artifact import Manifest
from truecast.calibration.libraries import CALIBRATED, FOLDING
from truecast.proof.claims import cache_bits_of, half_of, is_librarys
from truecast.proof.held import HeldWeight
from truecast.proof.quality import Noise, signal_to_noise
from truecast.proof.reference import Reference
from truecast.weights.sources import Sources

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the amount done and the amount in all."""


@dataclass(frozen=True)
class Case:
    """What is to be proven, opened. `floats` finds the weights that the price of the format is measured against."""

    folder: Path
    manifest: Manifest
    model: ir.Model
    reference: Reference
    weights: Mapping[str, HeldWeight]
    floats: Sources
    texts: tuple[str, ...]
    report: Progress

    @property
    def is_float32(self) -> bool:
        """Whether the graph computes in float32 and stores its weights so."""
        return self.manifest.precision == "fp32" and not self.is_quantized and not self.is_half

    @property
    def keeps_values(self) -> bool:
        """Whether every weight has the values that the checkpoint has, so that its format costs nothing."""
        made_here = any(weight.quantization is not None and not weight.own for weight in self.weights.values())
        same = self.floats is self.reference.sources and not self.is_library_made
        return not self.is_half and not made_here and same

    @property
    def is_half(self) -> bool:
        """Whether the graph computes in float16."""
        return half_of(self.model) is not None

    @property
    def is_all_held(self) -> bool:
        """Whether nothing of the checkpoint is compared with, or needed, beside what the artifact holds."""
        held = (self.reference.held(name, self.weights) is not None for name in self.reference.parameters)
        return self.keeps_values and not self.is_float32 and not self.texts and all(held)

    @property
    def is_library_made(self) -> bool:
        """Whether a library made the weights, and its own checkpoint is not there to compare with."""
        return self.manifest.settings.get("method") in CALIBRATED and self.floats is self.reference.sources

    @property
    def known_weights(self) -> Mapping[str, HeldWeight]:
        """The weights whose values follow from the checkpoint: all but those that a library made."""
        if not self.is_library_made:
            return self.weights
        folded = self.manifest.settings.get("method") in FOLDING
        known = {name: w for name, w in self.weights.items() if not is_librarys(w, self.model)}
        return {name: w for name, w in known.items() if w.quantization is not None or not folded}

    def noise(self) -> Noise:
        """The signal-to-noise ratio of every weight; nothing for methods that fold scales into other weights."""
        if self.manifest.settings.get("method") in FOLDING:
            return {}
        return signal_to_noise(self.reference, self.weights, self.floats, self.stage("measure noise"))

    @property
    def is_quantized(self) -> bool:
        """Whether the artifact stores any weight as codes."""
        return any(weight.quantization is not None for weight in self.weights.values())

    @property
    def cache_bits(self) -> int | None:
        """Bits of a code of the cache; None for floats."""
        return cache_bits_of(self.model)

    @property
    def against(self) -> str:
        """What the tight rule compares with, for the names of checks."""
        return "the original" if self.is_float32 else "the original with these weights"

    def stage(self, name: str) -> Callable[[int, int], None]:
        """A progress function of one stage."""
        return lambda done, total: self.report(name, done, total)
