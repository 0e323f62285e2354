"""Tier 1 of quantized products: how much was really quantized, and whether this processor multiplies it right.

Data flow: the products of the graph → the weights they read → those that the request wanted quantized and that are
floats nevertheless, by name and by bytes. Where products are of integers, MatMulInteger is tried with values made to
overflow, with codes as large as the graph's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import nn

from truecast.artifact import Check, Manifest
from truecast.proof.constants import base_of, untransposed
from truecast.proof.held import HeldWeight
from truecast.proof.integers import integer_products
from truecast.proof.tally import check, counted
from truecast.runtime.integers import Multiply, onnxruntime_multiply, probe
from truecast.weights.names import INTEGERS
from truecast.weights.rules import Rule

TIER = "static"
PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm", "MatMulNBits", "MatMulBnb4", "MatMulInteger", "QLinearMatMul"})
"""Operators that multiply with a weight."""
WEIGHT_INPUTS = {"QLinearMatMul": 3}
"""Input that is the weight, where it is not the second."""
QUANTIZED = "int"
"""How the names of precisions with codes begin."""
FLOAT_BYTES = 4
MATRIX_RANK = 2
LEAST_BLOCK = 16
"""Weights of QMoE's smallest block (ONNX Runtime 1.31)."""
LOOKUPS = frozenset({"Gather", "GatherBlockQuantized"})
TOKENS, FOLLOWED = "input_ids", frozenset({"Cast", "Reshape"})
NAMED_AT_MOST = 5
"""How many weights one check names."""


def quantization_checks(
    model: ir.Model,
    manifest: Manifest,
    weights: Mapping[str, HeldWeight],
    tied: Mapping[str, str],
    multiply: Multiply = onnxruntime_multiply,
) -> list[Check]:
    """Checks of what a manifest says of quantized products; none where it asks for none.

    Args:
        model: the artifact's graph.
        manifest: what the artifact says of itself.
        weights: the weights that the graph holds, by parameter.
        tied: parameters that share another one's weight.
        multiply: products of uint8 and int8 on this processor.
    """
    rules = tuple(Rule.parse(text) for text in manifest.settings.get("keep", ()))
    asked = {manifest.precision, *(rule.precision for rule in rules)}
    checks = []
    if any(name.startswith(QUANTIZED) for name in asked):
        checks.append(coverage_check(model, manifest.precision, rules, weights, tied))
    if asked & set(INTEGERS):
        checks += [codes_check(model, manifest, weights), probe_check(manifest, multiply)]
    return checks


def asked_weights(model: Any, weights: Mapping[str, HeldWeight]) -> dict[str, HeldWeight]:
    """The weights of a decoder that a precision is meant for: those of products and experts, the table of tokens."""
    table, owners = model.get_input_embeddings(), dict(model.named_modules())

    def is_asked(weight: HeldWeight) -> bool:
        owner = owners.get(weight.parameter.rpartition(".")[0])
        return weight.stack is not None or isinstance(owner, nn.Linear) or hasattr(owner, "nf") or owner is table

    return {name: weight for name, weight in weights.items() if is_asked(weight)}


def coverage_check(
    model: ir.Model,
    precision: str,
    rules: tuple[Rule, ...],
    weights: Mapping[str, HeldWeight],
    tied: Mapping[str, str],
) -> Check:
    """Whether every product that was to be quantized is: the share of the bytes that its float weights would take."""
    read = {name for node in model.graph for name in _weight_names(node)}
    tables = {name for node in model.graph for name in _tables_of_tokens(node)}
    wanted = quantized = 0
    left = []
    for name, weight in weights.items():
        asked = _asked(weight.parameter, precision, rules, tied)
        places = read if asked in INTEGERS else read | tables  # products of integers have no lookups
        of_experts = weight.stack is not None and len(weight.shape) > MATRIX_RANK
        matrix = len(weight.shape) == MATRIX_RANK and places & set(weight.initializers)
        if not asked.startswith(QUANTIZED) or not (of_experts or matrix):
            continue
        if of_experts and weight.quantization is None and weight.shape[-1] % LEAST_BLOCK:
            continue  # QMoE takes whole blocks alone
        size = int(np.prod(weight.shape)) * FLOAT_BYTES
        wanted += size
        if weight.quantization is not None:
            quantized += size
        else:
            left.append(name)
    named = ", ".join(left[:NAMED_AT_MOST]) + (f" and {len(left) - NAMED_AT_MOST} more" if left[NAMED_AT_MOST:] else "")
    detail = f"left in float: {named}" if left else f"{quantized} of {wanted} bytes of weights in products"
    share = quantized / wanted if wanted else 0.0
    return check(TIER, "weights quantized as asked", share, 1.0, "of the bytes", detail, at_least=True)


def _weight_names(node: ir.Node) -> Iterator[str]:
    """The initializer that a product's weight is made of."""
    index = WEIGHT_INPUTS.get(node.op_type, 1)
    if node.op_type not in PRODUCTS or len(node.inputs) <= index:
        return
    value = untransposed(node.inputs[index])
    decoder = None if value is None else value.producer()
    if decoder is not None and decoder.op_type == "DequantizeLinear":
        value = untransposed(decoder.inputs[0])
    if (base := base_of(value)) is not None and base.name:
        yield base.name


def _tables_of_tokens(node: ir.Node) -> Iterator[str]:
    """The initializer whose rows token ids pick."""
    picked = node.inputs[1] if node.op_type in LOOKUPS and len(node.inputs) > 1 else None
    ids = None if picked is None else picked.producer()
    while ids is not None and ids.op_type in FOLLOWED:
        picked = ids.inputs[0]
        ids = None if picked is None else picked.producer()
    if picked is not None and picked.name == TOKENS and (base := base_of(node.inputs[0])) is not None and base.name:
        yield base.name


def _asked(parameter: str, precision: str, rules: tuple[Rule, ...], tied: Mapping[str, str]) -> str:
    """The precision that a weight was to have; a tied one has that of either name."""
    names = {parameter, tied.get(parameter, parameter), *(k for k, v in tied.items() if v == parameter)}
    given = [rule.precision for rule in rules if any(rule.matches(name) for name in names)]
    return given[-1] if given else precision


def codes_check(model: ir.Model, manifest: Manifest, weights: Mapping[str, HeldWeight]) -> Check:
    """Whether products of integers are read as such, and no code is larger than the manifest says."""
    largest = manifest.settings.get("largest_code")
    tops = {name: weight.quantization.top for name, weight in weights.items() if weight.quantization is not None}
    faults = [f"{n} has codes up to {top}" for n, top in tops.items() if top is not None and top != largest]
    found, integers = len(integer_products(model)), sum(node.op_type == "MatMulInteger" for node in model.graph)
    if integers > found:
        faults.append(f"{integers - found} MatMulInteger are not scaled as products of a measured input")
    if not found:
        faults.append("there is no product of integers")
    return counted(TIER, "products of integers", faults, "faults", f"{found} products, codes up to {largest}")


def probe_check(manifest: Manifest, multiply: Multiply = onnxruntime_multiply) -> Check:
    """Whether this processor's products of integers are exact with codes as large as the manifest says."""
    seen = probe(int(manifest.settings.get("largest_code", 0)), multiply)
    detail = f"{seen.results} sums of extremes, codes up to {seen.top}"
    if not seen.exact:
        detail += f"; wrong by up to {seen.largest_error}: this processor saturates, export the model again on it"
    return check(TIER, "integer sums of this processor", float(seen.wrong), 0.0, "wrong sums", detail)
