"""Tier 1, what kind of artifact it is: read from the graph and the source, with which the manifest may only agree.

| what decides a limit | read from |
|---|---|
| float16 or bfloat16 | the weights that products multiply with |
| a quantized cache | the attributes of the attention operators |
| whose codes a weight has | how the checkpoint stores it, and whether it was to be kept |
| a library's codes | scales in 16 bits, as libraries store them; truecast's own are float32 |
| padding, dialect | the contract of the target |
| vocabulary | the shape of the logits |
| layers of the cache, their dtype | the graph's inputs |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import onnx_ir as ir

from truecast.artifact import Check, Manifest
from truecast.calibration.libraries import CALIBRATED
from truecast.errors import InputError
from truecast.halves.model import HALVES, Half
from truecast.proof.constants import untransposed
from truecast.proof.float_cache import ATTENTION, QUANTIZING
from truecast.proof.held import HeldWeight
from truecast.proof.reference import Reference
from truecast.proof.static import dims
from truecast.proof.tally import counted
from truecast.runtime.providers import LEVELS, PROVIDERS
from truecast.states import RECURRENT, StateTensor, is_past
from truecast.targets import find_target
from truecast.weights.names import AS_IS, MODULE_PRECISIONS, PRECISIONS
from truecast.weights.rules import Rule

TIER, NAME = "static", "kind of artifact as in the manifest"
PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm", "Conv", "MatMulNBits"})
"""Operators whose weight has the float that the graph computes in."""
FACTORS = {"MatMulNBits": 2}
"""Input that has it, where it is not the second: the scales."""
SMALL_FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def half_of(model: ir.Model, fallbacks: bool = False) -> Half | None:
    """The float of 16 bits that a graph computes in, if any.

    With `fallbacks`, as modules may have them, also that of a graph whose every product is a float32 fallback: it
    widens a weight of 16 bits. A decoder that keeps such weights as they are stored does the same in float32.
    """
    products = [node for node in model.graph if node.op_type in PRODUCTS]
    found = {_factor(node) for node in products} | {value.dtype for value in model.graph.outputs}
    if fallbacks and not FACTORS.keys() & {node.op_type for node in products}:  # whose scales may have 16 bits
        found |= {_widened(node) for node in products}
    return next((half for half in HALVES.values() if half.dtype in found), None)


def _factor(node: ir.Node) -> ir.DataType | None:
    index = FACTORS.get(node.op_type, 1)
    value = untransposed(node.inputs[index]) if index < len(node.inputs) else None
    return value.dtype if value is not None and value.is_initializer() else None


def _widened(node: ir.Node) -> ir.DataType | None:
    """What the weight of a product is stored in that is cast before it is multiplied: a float32 fallback of float16."""
    value = untransposed(node.inputs[1])
    caster = None if value is None else value.producer()
    stored = untransposed(caster.inputs[0]) if caster is not None and caster.op_type == "Cast" else None
    return stored.dtype if stored is not None and stored.is_initializer() else None


def cache_bits_of(model: ir.Model) -> int | None:
    """Bits of a code of the cache as the graph's attention has it; None for floats."""
    coded = [node for node in model.graph if node.op_type == ATTENTION and QUANTIZING[0] in node.attributes]
    return coded[0].attributes.get_int(QUANTIZING[2], 8) if coded else None


def with_own(weights: Mapping[str, HeldWeight], manifest: Manifest, reference: Reference) -> dict[str, HeldWeight]:
    """The weights with `own` as it follows from the source: quantized there, and to be kept as they are."""
    return {name: replace(weight, own=_is_own(weight, manifest, reference)) for name, weight in weights.items()}


def _is_own(weight: HeldWeight, manifest: Manifest, reference: Reference) -> bool:
    sources = reference.sources
    if weight.parameter not in sources.parameters or not sources[weight.parameter].is_quantized:
        return False
    kept = precision_of(weight.parameter, manifest, sources.tied) == AS_IS
    return kept or manifest.settings.get("method") in CALIBRATED


def precision_of(parameter: str, manifest: Manifest, tied: Mapping[str, str]) -> str:
    """The precision that a weight was to have; a tied one has that of either name."""
    rules = [Rule.parse(text) for text in manifest.settings.get("keep", ())]
    names = {parameter, tied.get(parameter, parameter), *(k for k, v in tied.items() if v == parameter)}
    given = [rule.precision for rule in rules if any(rule.matches(name) for name in names)]
    return given[-1] if given else manifest.precision


def is_librarys(weight: HeldWeight, model: ir.Model) -> bool:
    """Whether a weight of codes is as libraries store theirs."""
    values = (model.graph.initializers.get(name) for name in weight.initializers)
    return weight.quantization is not None and any(v is not None and v.dtype in SMALL_FLOATS for v in values)


def claims_check(
    model: ir.Model,
    manifest: Manifest,
    weights: Mapping[str, HeldWeight],
    decoder: bool = False,
) -> Check:
    """What the manifest says otherwise."""
    half = half_of(model, fallbacks=not decoder)
    faults = [*_kind_faults(model, manifest, weights, half), *_target_faults(manifest, decoder)]
    faults += [*session_faults(manifest), *(_decoder_faults(model, manifest) if decoder else ())]
    if not decoder and manifest.graph.vocab_size is not None:
        faults.append(f"vocab_size is {manifest.graph.vocab_size}, and there are no logits of tokens")
    detail = f"{manifest.precision} for {manifest.target}"
    return counted(TIER, NAME, faults, "contradictions", detail)


def _kind_faults(
    model: ir.Model, manifest: Manifest, weights: Mapping[str, HeldWeight], half: Half | None
) -> Iterator[str]:
    claimed = HALVES.get(manifest.precision)
    if manifest.precision not in (*PRECISIONS, *MODULE_PRECISIONS):
        yield f"there is no precision {manifest.precision}"
    if half is not claimed:
        said = "float32" if half is None else half.word
        yield f"the graph computes in {said}, the manifest says {manifest.precision}"
    asked = [manifest.precision, *(Rule.parse(text).precision for text in manifest.settings.get("keep", ()))]
    made = [name for name, weight in weights.items() if weight.quantization is not None and not weight.own]
    if made and not any(name.startswith("int") for name in asked):
        yield f"{made[0]} was quantized here, which {manifest.precision} does not ask for"
    method = manifest.settings.get("method")
    librarys = any(is_librarys(weight, model) for weight in weights.values())
    if method in CALIBRATED and not librarys:
        yield f"no weight is stored as {method} stores them"
    listed = {name: info.own for info in manifest.weights for name in info.initializers}
    for name, weight in weights.items() if method not in CALIBRATED else ():
        if weight.quantization is not None and listed[weight.initializers[0]] != weight.own:
            yield f"{name} has {'the' if weight.own else 'not the'} checkpoint's own codes"


def _target_faults(manifest: Manifest, decoder: bool) -> Iterator[str]:
    try:
        target = find_target(manifest.target)
    except InputError:
        yield f"there is no target {manifest.target}"
        return
    pairs = [("dialect", manifest.dialect, target.dialect)]
    pairs += [("padding", manifest.graph.padding, target.padding)] if decoder else []
    for what, said, wanted in pairs:
        if said != wanted:
            yield f"{what} is {said}, that of {target.name} is {wanted}"


def session_faults(manifest: Manifest) -> Iterator[str]:
    """What the manifest says of its sessions that no session could be."""
    if manifest.provider not in PROVIDERS:
        yield f"there is no provider {manifest.provider}"
    half = HALVES.get(manifest.precision)
    if half is not None and half.providers and manifest.provider not in half.providers:
        yield f"the provider is {manifest.provider}, which has no kernels for {half.word}"
    if manifest.graph.optimization not in LEVELS:
        yield f"there is no level of optimization {manifest.graph.optimization}"


def _decoder_faults(model: ir.Model, manifest: Manifest) -> Iterator[str]:
    info = manifest.graph
    pasts = [value for value in model.graph.inputs if is_past(value.name)]
    states = [state for value in pasts if (state := StateTensor.named(value.name)) is not None]
    layers = len({state.layer for state in states})
    given = (v for v, state in zip(pasts, states, strict=True) if state.part != RECURRENT)  # which may be wider
    kinds = {str(value.dtype.numpy()) for value in given if value.dtype is not None}
    if info.cache is not None and (info.cache.layers, {info.cache.dtype}) != (layers, kinds):
        found = f"{layers} layers of {' and '.join(sorted(kinds))}"
        yield f"the cache has {found} in the graph, {info.cache.layers} layers of {info.cache.dtype} in the manifest"
    bits = cache_bits_of(model)
    said = None if info.cache is None else info.cache.bits
    if said != bits:
        yield f"the cache has {bits or 'no'} bits to a code in the graph and {said or 'none'} in the manifest"
    vocabulary = next(iter(dims(model.graph.outputs[0])[-1:]), None)
    if info.vocab_size != vocabulary:
        yield f"vocab_size is {info.vocab_size}, the logits have {vocabulary}"
