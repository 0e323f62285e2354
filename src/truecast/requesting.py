"""What an export is asked for, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from truecast.artifact import sha256_of
from truecast.calibration.libraries import CALIBRATED, require_library
from truecast.errors import InputError
from truecast.halves.model import HALVES, Half
from truecast.runtime.integers import FULL, largest_code
from truecast.targets import MODULE_TARGETS, find_target
from truecast.trace.cleaners import CLEAN_UPS, NONE, require_cleaner
from truecast.weights.precision import INTEGERS, STATIC, Precision
from truecast.weights.quantize import BLOCK_SIZES
from truecast.weights.quantizers import DEFAULT_METHOD, STREAMED
from truecast.weights.rules import Rule

AS_IS = "as-is"
PRECISIONS = (AS_IS, "fp32", "fp16", "int8", "int4")
ACTIVATIONS = ("int8", "float")
MODULE_PRECISIONS: tuple[str, ...] = ("bf16", *INTEGERS)
"""Precisions that only modules without a cache can have."""
EXPORTERS: Mapping[str, range] = MappingProxyType({"dynamo": range(18, 26), "torchscript": range(17, 21)})
"""torch's exporters, and the opsets that each writes without changing the number behind one's back (torch 2.13)."""
RANGES = ("minmax", "entropy", "percentile")
"""Ways to find the range of an input in what calibration saw of it."""
OPTIMIZATIONS = ("all", "extended", "basic", "none")
CACHES = ("float", "int8", "int4")
MODULE_OPTIONS = ("exporter", "optimization", "save_optimized", "calibration_method", "clean_up")
"""What only modules without a cache can be asked for; decoders have the default of each."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    `method` makes the codes of int8 and int4; `keep` are rules, PATTERN=PRECISION (`rules`); `calibration` is a file of
    text (`calibration.texts`); `kv_cache` is what keys and values are kept as; `opset` None is the dialect's own;
    `clean_up` is the library that rewrites the finished graph (`trace.cleaners`); `adapter` is the folder of an adapter
    that is added to the weights.
    """

    target: str = "onnxruntime"
    precision: str = "fp32"
    provider: str = "cpu"
    block_size: int = 32
    activations: str = "int8"
    link_weights: bool = False
    trust_remote_code: bool = False
    method: str = "rtn"
    keep: tuple[str, ...] = ()
    calibration: Path | None = None
    kv_cache: str = "float"
    opset: int | None = None
    exporter: str = "dynamo"
    optimization: str = "all"
    calibration_method: str = "minmax"
    save_optimized: bool = False
    clean_up: str = NONE
    adapter: Path | None = None

    def check(self) -> None:
        """Raises InputError for a value that no export can take."""
        self._check_opset()
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("activations", self.activations, ACTIVATIONS)
        self._check_links()
        for rule in self.rules:
            _one_of("precision of decoders", rule.precision, PRECISIONS)
        self._check_codes()
        self._check_blocks()
        self._check_cache()
        if self.adapter is not None and self.method in CALIBRATED:
            raise InputError(
                f"--method {self.method} quantizes the base without its adapter; add the adapter to it with peft first."
            )
        for name in MODULE_OPTIONS:
            if getattr(self, name) != getattr(Request, name):
                option = name.replace("_", "-")
                raise InputError(f"--{option} is for models without a cache; a decoder takes none, leave it out.")

    def check_module(self) -> None:
        """Raises InputError for a value that no export of a module can take."""
        find_target(self.target)
        _one_of("precision", self.precision, (*PRECISIONS, *MODULE_PRECISIONS))
        _one_of("exporter", self.exporter, tuple(EXPORTERS))
        _one_of("level of optimization", self.optimization, OPTIMIZATIONS)
        _one_of("clean-up", self.clean_up, CLEAN_UPS)
        require_cleaner(self.clean_up)
        if self.target not in MODULE_TARGETS:
            raise InputError(f"The target {self.target} runs decoders only; choose one of {', '.join(MODULE_TARGETS)}.")
        if self.kv_cache != "float":
            raise InputError("--kv-cache is for decoders; a model without a cache has none, leave it out.")
        if self.method in CALIBRATED:
            raise InputError(f"--method {self.method} is for decoders; choose one of {', '.join(STREAMED)}.")
        opsets = EXPORTERS[self.exporter]
        if self.opset is not None and self.opset not in opsets:
            raise InputError(
                f"The exporter {self.exporter} writes no opset {self.opset}; "
                f"choose one from {opsets[0]} to {opsets[-1]}."
            )
        self._check_integers()
        self._check_half()
        self._check_module_codes()

    def _check_half(self) -> None:
        half = self.half
        if half is None or not half.providers:
            return
        listed = " or ".join(half.providers)
        if self.rules:
            raise InputError(f"--keep does not go with {half.name}; what cannot compute in it stays float32 by itself.")
        if self.provider not in ("cpu", *half.providers):
            raise InputError(
                f"{half.name} is known in kernels of {listed} only, not of {self.provider}; choose --precision fp16."
            )
        if self.save_optimized and self.provider == "cpu":
            raise InputError(
                f"--save-optimized rewrites the graph for this machine, whose processor has no {half.word} kernels; "
                f"leave it out, or choose the provider {listed}."
            )

    @property
    def half(self) -> Half | None:
        """The float of 16 bits that the graph computes in; None for the others."""
        return HALVES.get(self.precision)

    @property
    def runs_on(self) -> str:
        """The provider that the artifact is for: the one asked for, or one that has kernels for the precision."""
        half = self.half
        return self.provider if half is None or not half.providers or self.provider != "cpu" else half.providers[0]

    def _check_integers(self) -> None:
        _one_of("calibration method", self.calibration_method, RANGES)
        if self.calibration_method != RANGES[0] and STATIC not in self.precisions:
            raise InputError(
                f"--calibration-method is for {STATIC}; {self.precision} has no ranges to find, leave it out."
            )
        if self.method != DEFAULT_METHOD and self.precision in INTEGERS:
            raise InputError(f"--method {self.method} makes codes in blocks; {self.precision} has none, leave it out.")

    def _check_opset(self) -> None:
        opsets = find_target(self.target).opsets
        if self.opset is None or self.opset in opsets:
            return
        if not opsets:
            raise InputError(f"The target {self.target} has an opset of its own; leave --opset out.")
        listed = ", ".join(map(str, opsets))
        raise InputError(f"The target {self.target} does not take opset {self.opset}; choose one of {listed}.")

    def _check_cache(self) -> None:
        _one_of("kind of cache", self.kv_cache, CACHES)
        if self.cache_bits is not None and self.provider != "cpu":
            raise InputError(
                f"--kv-cache {self.kv_cache} was only seen to be right on cpu, not on {self.provider}; leave it out."
            )

    @property
    def cache_bits(self) -> int | None:
        """Bits of a code of the cache; None for floats."""
        return None if self.kv_cache == "float" else int(self.kv_cache.removeprefix("int"))

    def _check_codes(self) -> None:
        _one_of("method", self.method, (*STREAMED, *CALIBRATED))
        if self.rules and self.precision == "fp16":
            raise InputError("--keep does not go with fp16, whose whole graph computes in float16; choose another.")
        calibrated = self.method in CALIBRATED and not self.precision.startswith("int")
        if calibrated or (self.method != DEFAULT_METHOD and not self.makes_codes):
            raise InputError(
                f"--method {self.method} makes codes of floats, but {self.precision} has none; "
                "choose --precision int4 or int8."
            )
        if self.method in CALIBRATED:
            if self.calibration is None:
                raise InputError(f"--method {self.method} runs the model on text; give it with --calibration FILE.")
            require_library(self.method, int(self.precision.removeprefix("int")))
        if self.calibration is not None and not self.makes_codes and self.cache_bits is None:
            raise InputError(f"--calibration tells what int4 and int8 cost; {self.precision} has none, leave it out.")

    def _check_links(self) -> None:
        if self.link_weights and self.precision != "fp32":
            raise InputError(
                f"--link-weights keeps float32 bytes as they are; {self.precision} has none, leave it out."
            )

    def _check_blocks(self) -> None:
        """Raises InputError for a block size that no operator takes, and for one that nothing would heed."""
        if self.makes_codes and self.block_size not in BLOCK_SIZES:
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise InputError(f"MatMulNBits does not take the block size {self.block_size}; choose one of {sizes}.")
        if not self.makes_codes and self.block_size != Request.block_size:
            raise InputError(f"--block-size is for int8 and int4; {self.precision} has no blocks, leave it out.")
        if not self.makes_codes and AS_IS not in self.precisions and self.activations != Request.activations:
            raise InputError(
                f"--activations is for products of codes in blocks; {self.precision} has none, leave it out."
            )

    def _check_module_codes(self) -> None:
        """Raises InputError for what modules without a cache would not heed."""
        _one_of("activations", self.activations, ACTIVATIONS)
        self._check_links()
        self._check_blocks()
        if self.method != DEFAULT_METHOD and not self.makes_codes:
            raise InputError(f"--method {self.method} makes codes in blocks; {self.precision} has none, leave it out.")
        measured = self.makes_integers or (self.half is not None and not self.half.providers)
        if self.calibration is not None and not measured:
            raise InputError(
                f"--calibration is for {', '.join(INTEGERS)} and fp16 to measure on; {self.precision} measures "
                "nothing, leave it out."
            )

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules of `keep`; raises InputError for what is none."""
        return tuple(Rule.parse(text) for text in self.keep)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file and folder that it names."""
        return tuple(value for value in vars(self).values() if isinstance(value, Path))

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precision asked for, and those of the rules."""
        return (self.precision, *(rule.precision for rule in self.rules))

    @property
    def least_bits(self) -> int:
        """Bits that a weight takes at least, of those that become floats or codes; 0 where the checkpoint decides."""
        if self.link_weights or AS_IS in self.precisions:
            return 0
        bits = {"fp32": 32, "int4": 4} | dict.fromkeys(HALVES, 16)
        return min(bits.get(name, 8) for name in self.precisions)

    @property
    def makes_codes(self) -> bool:
        """Whether any weight is quantized here in blocks."""
        return any(name.startswith("int") and name not in INTEGERS for name in self.precisions)

    @property
    def makes_integers(self) -> bool:
        """Whether any product is one of integers."""
        return any(name in INTEGERS for name in self.precisions)

    def packing(self, name: str | None = None) -> Precision:
        """A precision as packing understands it: the one asked for, or one that a rule names."""
        name = name or self.precision
        if name in INTEGERS:
            top = largest_code()
            return Precision(
                name, ir.DataType.FLOAT, top.bit_length() + 1, channels=True, static=name == STATIC, top=top
            )
        dtype = HALVES[name].dtype if name in HALVES else ir.DataType.FLOAT
        bits = int(name[3:]) if name.startswith("int") else None
        linked, own = self.link_weights, name == AS_IS
        method = self.method if self.method in STREAMED else DEFAULT_METHOD
        return Precision(name, dtype, bits, self.block_size, self.activations, linked, own, method)

    def settings(self) -> dict[str, Any]:
        """What the manifest says of the request beside target, precision and provider: what had an effect."""
        settings: dict[str, Any] = {}
        if self.makes_codes:
            settings |= {"block_size": self.block_size, "method": self.method}
        if self.makes_integers:
            settings |= {"largest_code": largest_code()}
        if STATIC in self.precisions:
            settings |= {"calibration_method": self.calibration_method}
        if self.calibration is not None:
            settings["calibration"] = sha256_of(self.calibration)
        if self.makes_codes or AS_IS in (self.precision, *(rule.precision for rule in self.rules)):
            settings["activations"] = self.activations
        if self.cache_bits is not None:
            settings["kv_cache"] = self.kv_cache
        if self.rules:
            settings["keep"] = [str(rule) for rule in self.rules]
        return settings


def integer_notice(request: Request) -> str | None:
    """What the user should know of products of integers; None where there are none."""
    if not request.makes_integers:
        return None
    if largest_code() == FULL:
        return (
            "Weights of integer products have codes of 8 bits: they are exact on this processor, as measured. x86 "
            "processors without VNNI saturate in such products; there, export again, or run `truecast verify` first."
        )
    return (
        f"Weights of integer products have codes of 7 bits, up to {largest_code()}: with 8 bits this processor's sums "
        "saturate, as measured. The session key session.x64quantprecision would avoid that at half the speed."
    )


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"There is no {what} {value!r}; choose one of {', '.join(known)}.")
