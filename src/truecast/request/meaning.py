"""What a request means to the rest: rules, the float it computes in, precisions as packing knows them, settings."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from truecast.artifact import sha256_of
from truecast.halves.model import HALVES, Half
from truecast.request.options import Request
from truecast.runtime.integers import FULL, largest_code
from truecast.weights.names import AS_IS, INTEGERS, STATIC
from truecast.weights.precision import Precision
from truecast.weights.quantizers import DEFAULT_METHOD, STREAMED
from truecast.weights.rules import Rule


def rules_of(request: Request) -> tuple[Rule, ...]:
    """The rules of `keep`; raises InputError for what is none."""
    return tuple(Rule.parse(text) for text in request.keep)


def half_of(request: Request) -> Half | None:
    """The float of 16 bits that the graph computes in; None for the others."""
    return HALVES.get(request.precision)


def runs_on(request: Request) -> str:
    """The provider that the artifact is for: the one asked for, or one that has kernels for the precision."""
    half = half_of(request)
    return request.provider if half is None or not half.providers or request.provider != "cpu" else half.providers[0]


def packing(request: Request, name: str | None = None) -> Precision:
    """A precision as packing understands it: the one asked for, or one that a rule names."""
    name = name or request.precision
    if name in INTEGERS:
        top = largest_code()
        return Precision(name, ir.DataType.FLOAT, top.bit_length() + 1, channels=True, static=name == STATIC, top=top)
    dtype = HALVES[name].dtype if name in HALVES else ir.DataType.FLOAT
    bits = int(name[3:]) if name.startswith("int") else None
    linked, own = request.link_weights, name == AS_IS
    method = request.method if request.method in STREAMED else DEFAULT_METHOD
    return Precision(name, dtype, bits, request.block_size, request.activations, linked, own, method)


def settings(request: Request) -> dict[str, Any]:
    """What the manifest says of a request beside target, precision and provider: what had an effect."""
    said: dict[str, Any] = {}
    if request.makes_codes:
        said |= {"block_size": request.block_size, "method": request.method}
    if request.makes_integers:
        said |= {"largest_code": largest_code()}
    if STATIC in request.precisions:
        said |= {"calibration_method": request.calibration_method}
    if request.calibration is not None:
        said["calibration"] = sha256_of(request.calibration)
    if request.makes_codes or AS_IS in request.precisions:
        said["activations"] = request.activations
    if request.cache_bits is not None:
        said["kv_cache"] = request.kv_cache
    if request.keep:
        said["keep"] = list(request.keep)
    return said


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
