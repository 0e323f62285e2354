"""What goes with what: each check raises InputError, in one sentence, for what no export could take or would heed."""

from __future__ import annotations

from dataclasses import fields

from truecast.calibration.libraries import CALIBRATED, require_library
from truecast.errors import InputError
from truecast.request.meaning import half_of, rules_of
from truecast.request.options import EXPORTERS, KINDS, RANGES, Kind, Request, flag, option_of, require_value
from truecast.targets import find_target
from truecast.trace.cleaners import require_cleaner
from truecast.weights.names import AS_IS, INTEGERS, STATIC
from truecast.weights.quantize import BLOCK_SIZES
from truecast.weights.quantizers import DEFAULT_METHOD


def require_decoder(request: Request) -> None:
    """Raises InputError for what no decoder can be asked for."""
    _require_opset(request)
    _require_values(request, "decoder")
    for rule in rules_of(request):
        require_value("precision", rule.precision, "decoder")
    _require_links(request)
    _require_method(request)
    _require_blocks(request)
    if request.cache_bits is not None and request.provider != "cpu":
        raise InputError(
            f"--kv-cache {request.kv_cache} was only seen to be right on cpu, not on {request.provider}; leave it out."
        )
    if request.adapter is not None and request.method in CALIBRATED:
        raise InputError(
            f"--method {request.method} quantizes the base without its adapter; add the adapter to it with peft first."
        )


def require_module(request: Request) -> None:
    """Raises InputError for what no model without a cache can be asked for."""
    _require_values(request, "module")
    require_cleaner(request.clean_up)
    opsets = EXPORTERS[request.exporter]
    if request.opset is not None and request.opset not in opsets:
        raise InputError(
            f"The exporter {request.exporter} writes no opset {request.opset}; "
            f"choose one from {opsets[0]} to {opsets[-1]}."
        )
    _require_integers(request)
    _require_half(request)
    _require_links(request)
    _require_blocks(request)
    if request.method != DEFAULT_METHOD and not request.makes_codes:
        raise InputError(
            f"--method {request.method} makes codes in blocks; {request.precision} has none, leave it out."
        )
    _require_measured(request)


def _require_values(request: Request, kind: Kind) -> None:
    """Raises InputError for a name that is none, or is not for this kind, and for an option of the other kind."""
    for one in fields(Request):
        said, value = option_of(one), getattr(request, one.name)
        if said.only not in (None, kind) and value != one.default:
            assert said.only is not None
            has = "a decoder takes none" if kind == "decoder" else "a model without a cache has none"
            raise InputError(f"{flag(one.name)} is for {KINDS[said.only]}; {has}, leave it out.")
        if said.values is not None and value is not None:
            require_value(one.name, value, kind)


def _require_half(request: Request) -> None:
    half = half_of(request)
    if half is None or not half.providers:
        return
    listed = " or ".join(half.providers)
    if request.keep:
        raise InputError(f"--keep does not go with {half.name}; what cannot compute in it stays float32 by itself.")
    if request.provider not in ("cpu", *half.providers):
        raise InputError(
            f"{half.name} is known in kernels of {listed} only, not of {request.provider}; choose --precision fp16."
        )
    if request.save_optimized and request.provider == "cpu":
        raise InputError(
            f"--save-optimized rewrites the graph for this machine, whose processor has no {half.word} kernels; "
            f"leave it out, or choose the provider {listed}."
        )


def _require_integers(request: Request) -> None:
    if request.calibration_method != RANGES[0] and STATIC not in request.precisions:
        raise InputError(
            f"--calibration-method is for {STATIC}; {request.precision} has no ranges to find, leave it out."
        )
    if request.method != DEFAULT_METHOD and request.precision in INTEGERS:
        raise InputError(
            f"--method {request.method} makes codes in blocks; {request.precision} has none, leave it out."
        )


def _require_opset(request: Request) -> None:
    opsets = find_target(request.target).opsets
    if request.opset is None or request.opset in opsets:
        return
    if not opsets:
        raise InputError(f"The target {request.target} has an opset of its own; leave --opset out.")
    listed = ", ".join(map(str, opsets))
    raise InputError(f"The target {request.target} does not take opset {request.opset}; choose one of {listed}.")


def _require_method(request: Request) -> None:
    method, precision = request.method, request.precision
    if request.keep and precision == "fp16":
        raise InputError("--keep does not go with fp16, whose whole graph computes in float16; choose another.")
    calibrated = method in CALIBRATED and not precision.startswith("int")
    if calibrated or (method != DEFAULT_METHOD and not request.makes_codes):
        raise InputError(
            f"--method {method} makes codes of floats, but {precision} has none; choose --precision int4 or int8."
        )
    if method in CALIBRATED:
        if request.calibration is None:
            raise InputError(f"--method {method} runs the model on text; give it with --calibration FILE.")
        require_library(method, int(precision.removeprefix("int")))
    used = method in CALIBRATED or request.cache_bits is not None
    if request.calibration is not None and not request.makes_codes and not used:
        raise InputError(f"--calibration tells what int4 and int8 cost; {precision} has none, leave it out.")
    if request.calibration is not None and not request.verify and not used:
        raise InputError(
            f"--calibration is for the proof to measure on, or for {', '.join(CALIBRATED)}; "
            "leave out --no-verify or it."
        )


def _require_links(request: Request) -> None:
    if request.link_weights and request.precision != "fp32":
        raise InputError(f"--link-weights keeps float32 bytes as they are; {request.precision} has none, leave it out.")


def _require_blocks(request: Request) -> None:
    """Raises InputError for a block size that no operator takes, and for one that nothing would heed."""
    if request.makes_codes and request.block_size not in BLOCK_SIZES:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise InputError(f"MatMulNBits does not take the block size {request.block_size}; choose one of {sizes}.")
    if not request.makes_codes and request.block_size != Request.block_size:
        raise InputError(f"--block-size is for int8 and int4; {request.precision} has no blocks, leave it out.")
    multiplied = request.makes_codes or AS_IS in request.precisions
    if not multiplied and request.activations != Request.activations:
        raise InputError(
            f"--activations is for products of codes in blocks; {request.precision} has none, leave it out."
        )


def _require_measured(request: Request) -> None:
    """Raises InputError for a text that nothing of a model without a cache would be measured on."""
    half = half_of(request)
    measured = request.makes_integers or (half is not None and not half.providers)
    if request.calibration is not None and not measured:
        raise InputError(
            f"--calibration is for {', '.join(INTEGERS)} and fp16 to measure on; {request.precision} measures "
            "nothing, leave it out."
        )
