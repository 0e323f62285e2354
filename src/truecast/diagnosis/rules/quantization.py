"""TC2xx: what a quantizer left out, what is dequantized at every run, and where integers saturate."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from truecast.diagnosis.evidence import Evidence, label
from truecast.diagnosis.model import Seen, seen
from truecast.diagnosis.rules.rule import ERROR, INFO, WARNING, Rule
from truecast.diagnosis.stored import Weight
from truecast.runtime.providers import PRECISE_KEY

PRODUCTS = {"MatMul": 1, "Gemm": 1, "FusedMatMul": 1}
"""Products in float and the input that is the weight."""
WITHOUT_CODES = {"Conv": 1, "LSTM": 1, "GRU": 1, "Attention": 1}
"""Others that quantizers take, which count where a quantizer took nothing at all."""
QUANTIZER = "onnx.quantize"
"""What ONNX Runtime's quantizers write as the producer (onnxruntime/quantization/onnx_quantizer.py)."""
INTEGER_OPERATOR = re.compile("Quantize|Integer|NBits|Bnb4|^Q[A-Z]")
"""Names of operators that compute with codes, make them or take them back."""
QUANTIZED_WEIGHT = {
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
    "QLinearMatMul": 3,
    "QGemm": 3,
    "MatMulNBits": 1,
    "MatMulBnb4": 1,
    "QAttention": 1,
    "QMoE": 2,
}
"""Products of quantized weights and the input that is the weight."""
SIGNED_PAIRS = {
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "ConvInteger": (0, 1),
    "DynamicQuantizeMatMul": (None, 1),
    "QLinearMatMul": (0, 3),
    "QLinearConv": (0, 3),
    "QGemm": (0, 3),
}
"""Integer products: the inputs that are the activation (None: it is made inside, as uint8) and the weight."""
THROUGH = ("Transpose", "Cast", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Mul")
"""Operators between a weight and its product."""
DEEPEST_CHAIN = 4
SMALLEST_WEIGHT = 1024
"""Elements from which a weight is worth a quantizer's while."""
TOLERATED_SHARE = 0.02
"""Share of the linear weights' elements that may stay in float: routers and small heads."""
SEVEN_BITS = 64
"""Largest magnitude with which two products of uint8 fit into 16 bits: 2 · 255 · 64 < 2^15."""
FAINT = 20.0
"""Decibels below which an activation's codes have an error of more than a tenth of its usual channel. MiniLM after
onnxruntime.quantization.quantize_dynamic: 15.6, and its embeddings at cosine 0.905; models whose int8 answers are those
of their floats: 27 and more."""
UNHARMED = 0.999
"""Cosine of the outputs with those of unrounded activations from which nothing is lost that anyone would see: an error
of 4 % of their length. MiniLM as above keeps 0.9, a speaker encoder with a faint activation before its head 0.99998."""
BYTE_BITS = 8
INT8_LEVEL = 4
"""Accuracy level of QMoE that asks for int8 inputs (operator schema, ONNX Runtime 1.31)."""
FOUR_BITS = (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2)


def weight_behind(value: ir.Value | None, evidence: Evidence) -> Weight | None:
    """The weight that a value is or is made of by a few operators that move its elements."""
    for _ in range(DEEPEST_CHAIN):
        if value is None:
            return None
        if value in evidence.weight_of:
            return evidence.weight_of[value]
        producer = value.producer()
        if producer is None or producer.op_type not in THROUGH or not producer.inputs:
            return None
        value = producer.inputs[0]
    return None


def float_products(evidence: Evidence, products: Mapping[str, int] = PRODUCTS) -> Iterator[tuple[ir.Node, Weight]]:
    """Products with float weights of two axes or, those of convolutions and recurrent layers, more."""
    for node in evidence.nodes:
        index = products.get(node.op_type)
        weight = weight_behind(node.inputs[index], evidence) if index is not None and len(node.inputs) > index else None
        if weight is None or not weight.dtype.is_floating_point():
            continue
        if len(weight.shape) == 2 or (node.op_type in WITHOUT_CODES and len(weight.shape) > 2):
            yield node, weight


def dequantized_weights(evidence: Evidence) -> Iterator[tuple[ir.Node, Weight]]:
    """Nodes that dequantize a stored weight."""
    for node in evidence.nodes:
        weight = (
            evidence.weight_of.get(node.inputs[0]) if node.op_type == "DequantizeLinear" and node.inputs[0] else None
        )
        if weight is not None and weight.elements >= SMALLEST_WEIGHT:
            yield node, weight


def quantized_elements(evidence: Evidence) -> int:
    """Weights that a quantizer turned into integers."""
    packed = 0
    for node in evidence.nodes:
        index = QUANTIZED_WEIGHT.get(node.op_type)
        weight = weight_behind(node.inputs[index], evidence) if index is not None and len(node.inputs) > index else None
        if weight is not None:
            bits = node.attributes.get("bits")
            packed += weight.nbytes * 8 // (bits.as_int() if bits is not None else 8)
    return packed + sum(weight.elements for _, weight in dequantized_weights(evidence))


def went_through_a_quantizer(evidence: Evidence) -> bool:
    """Whether the file names a quantizer as its producer."""
    return evidence.model.producer_name == QUANTIZER


def left_in_float(evidence: Evidence) -> Seen | None:
    """Linears that a quantizer skipped in silence: Gemm, a tied head behind a Transpose, excluded names, or all."""
    quantized = quantized_elements(evidence)
    nothing = not quantized and went_through_a_quantizer(evidence) and not has_integers(evidence)
    if not quantized and not nothing:
        return None
    products = {**PRODUCTS, **WITHOUT_CODES} if nothing else PRODUCTS
    held = {weight.name: (node, weight) for node, weight in float_products(evidence, products)}
    left = {name: pair for name, pair in held.items() if pair[1].elements >= SMALLEST_WEIGHT}
    if not left:
        return None
    elements = sum(weight.elements for _, weight in left.values())
    share = elements / (elements + quantized)
    if share <= TOLERATED_SHARE:
        return None
    worst = sorted(left.values(), key=lambda pair: -pair[1].nbytes)
    names = [f"{label(node)} ({weight.name} {list(weight.shape)})" for node, weight in worst]
    which = ", the file went through a quantizer that changed nothing" if nothing else ""
    size, detail = sum(weight.nbytes for _, weight in worst), f"{share:.0%} of the linear weights{which}"
    return seen(names, detail, nbytes=size, fix=NAME_PRODUCTS if nothing else None)


NAME_PRODUCTS = (
    "Quantize the float file again without op_types_to_quantize, nodes_to_quantize and nodes_to_exclude, or with "
    "op_types_to_quantize=['MatMul', 'Gemm'] (quantize_dynamic turns each Gemm into a MatMul first)."
)


def has_integers(evidence: Evidence) -> bool:
    """Whether any node computes with codes or makes them."""
    return any(INTEGER_OPERATOR.search(node.op_type) for node in evidence.nodes)


def dequantized_each_run(evidence: Evidence) -> Seen | None:
    """A weight that no fusion takes, so that all of it is dequantized at every run."""
    held = [(node, weight) for node, weight in dequantized_weights(evidence) if _never_fuses(node, weight, evidence)]
    convolved = any(reader.op_type == "Conv" for node, _ in held for reader in node.outputs[0].consumers())
    return seen(
        (f"{label(node)} ({weight.name})" for node, weight in held),
        nbytes=sum(4 * w.elements for _, w in held),
        fix=FLOAT_OR_BOTH if convolved else None,
    )


FLOAT_OR_BOTH = (
    "Quantize the input and the output of each Conv too, or store its weight in float: no kernel takes it so."
)


def _never_fuses(node: ir.Node, weight: Weight, evidence: Evidence) -> bool:
    """Whether a reader of the dequantized weight is one that ONNX Runtime 1.31 was seen not to fuse."""
    readers = [
        reader for reader in node.outputs[0].consumers() if reader.op_type in ("Transpose", *PRODUCTS, "Gather", "Conv")
    ]
    for reader in readers:
        if reader.op_type == "Gather":
            return True
        products = reader.outputs[0].consumers() if reader.op_type == "Transpose" else (reader,)
        for product in products:
            if _has_integer_activation(product) or product.op_type not in (*PRODUCTS, "Conv"):
                continue
            transposed = reader.op_type == "Transpose" or _flag(product, "transB")
            if transposed or product.op_type == "Conv" or (product.op_type == "Gemm" and weight.dtype not in FOUR_BITS):
                return True
    return False


def _has_integer_activation(product: ir.Node) -> bool:
    producer = product.inputs[0].producer() if product.inputs and product.inputs[0] is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def _flag(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is not None and bool(attribute.as_int())


def runs_in_float(evidence: Evidence) -> Seen | None:
    """Seen in a run: a product between QDQ nodes that kept its float kernel."""
    if evidence.observed is None:
        return None
    ran = {timing.name: timing for timing in evidence.observed.ran(*PRODUCTS, "Conv")}
    fed = [reader for node, _ in dequantized_weights(evidence) for reader in node.outputs[0].consumers()]
    slow = [node for node in fed if node.name in ran and _has_integer_activation(node)]
    spent = sum(timing.milliseconds for timing in evidence.observed.ran("DequantizeLinear", "QuantizeLinear"))
    return seen(map(label, slow), milliseconds=spent)


def saturates(evidence: Evidence) -> Seen | None:
    """Uint8 activations times full-range int8 weights, which overflow 16 bits on x86 without VNNI."""
    if evidence.provider != "cpu" or evidence.settings.entries.get(PRECISE_KEY) == "1":
        return None
    full = [(node, weight) for node, weight in _signed_pairs(evidence) if _full_range(weight)]
    moved = None if evidence.observed is None else evidence.observed.saturation
    if evidence.host.saturates:
        said = "" if moved is None else f"; with exact products outputs differ by {moved:.2g} of the largest value"
        return seen(
            (f"{label(node)} ({weight.name})" for node, weight in full),
            f"measured on this processor{said}",
            severity=INFO if moved == 0 else None,
        )
    return seen(
        (f"{label(node)} ({weight.name})" for node, weight in full),
        "exact on this processor, which was measured; elsewhere the same file gives other numbers",
        severity=INFO,
    )


def _signed_pairs(evidence: Evidence) -> Iterator[tuple[ir.Node, Weight]]:
    """Products of uint8 activations with int8 weights, as operators or between QDQ nodes."""
    for node in evidence.nodes:
        activation, stored = _operands(node)
        weight = None if stored is None else evidence.weight_of.get(stored)
        if weight is None or weight.dtype is not ir.DataType.INT8:
            continue
        if activation is None or evidence.types.get(activation) is ir.DataType.UINT8:
            yield node, weight


def _operands(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """The integer activation of a product (None where it is made inside, as uint8) and its integer weight."""
    if node.op_type in SIGNED_PAIRS:
        left, right = SIGNED_PAIRS[node.op_type]
        return None if left is None else node.inputs[left], node.inputs[right]
    if node.op_type in (*PRODUCTS, "Conv") and _has_integer_activation(node):
        return _dequantized(node.inputs[0]), _dequantized(node.inputs[1])
    return None, None


def _dequantized(value: ir.Value | None) -> ir.Value | None:
    """What a DequantizeLinear reads to make a value, also behind a Transpose."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Transpose":
        return _dequantized(producer.inputs[0])
    return producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else None


def _full_range(weight: Weight) -> bool:
    """Whether a sample of the weight has values beyond seven bits."""
    codes = np.frombuffer(weight.sample(), np.int8) if weight.readable else np.zeros(0, np.int8)
    return bool((np.abs(codes.astype(np.int16)) > SEVEN_BITS).any())


def outliers_take_the_codes(evidence: Evidence) -> Seen | None:
    """Seen in a run: activations of which a few channels leave the others next to no int8 codes."""
    observed = evidence.observed
    if observed is None or (observed.kept is not None and observed.kept >= UNHARMED):
        return None
    faint = [rounding for rounding in observed.roundings if rounding.decibels < FAINT]
    detail = f"{len(observed.roundings)} activations are rounded"
    if observed.kept is not None:
        detail += f"; outputs keep a cosine of {observed.kept:.4f} with those of unrounded ones"
    return seen((f"{one.node} ({one.decibels:.0f} dB)" for one in faint), detail)


def mistaken_attention(evidence: Evidence) -> Seen | None:
    """The quantizer took ONNX's Attention for the older operator of the same name."""
    faulty = [
        node for node in evidence.nodes if node.op_type == "QAttention" and not _is_contrib_attention(node, evidence)
    ]
    return seen(map(label, faulty))


def _is_contrib_attention(node: ir.Node, evidence: Evidence) -> bool:
    """The contrib operator takes its packed weight, a matrix of integers, second."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    return weight is not None and weight in evidence.weight_of and len(evidence.weight_of[weight].shape) == 2


def rounded_experts(evidence: Evidence) -> Seen | None:
    """Experts of 8 bits in blocks whose kernel rounds its inputs although the level asks for floats."""
    if evidence.provider != "cpu":
        return None
    faulty = [
        node
        for node in evidence.nodes
        if node.op_type == "QMoE"
        and node.attributes.get_string("quant_type", "int") == "int"
        and node.attributes.get_int("expert_weight_bits", 4) == BYTE_BITS
        and node.attributes.get_int("block_size", 0) > 0
        and node.attributes.get_int("accuracy_level", 0) != INT8_LEVEL
    ]
    return seen(map(label, faulty))


RULES = (
    Rule(
        "TC201",
        WARNING,
        "Linears left in float beside a quantizer",
        "The largest weights keep their size and speed while the rest is quantized.",
        "Turn Gemm into MatMul and Add and transpose tied weights ahead, or export with truecast at int4 or int8.",
        left_in_float,
    ),
    Rule(
        "TC202",
        WARNING,
        "Weights dequantized at every run",
        "The whole weight is written out in float each time: slower than no quantization.",
        "Store the weight [inputs, outputs] with axis 0, or emit MatMulNBits or GatherBlockQuantized directly.",
        dequantized_each_run,
    ),
    Rule(
        "TC203",
        WARNING,
        "Products between QDQ nodes run in float",
        "Quantize and dequantize nodes are paid for and no integer kernel runs.",
        "Quantize the output too, or use MatMul in place of Gemm, so that the pattern fuses.",
        runs_in_float,
    ),
    Rule(
        "TC204",
        WARNING,
        "Full-range int8 weights with uint8 activations",
        "Products saturate on x86 without VNNI: outputs are wrong by a little or a lot.",
        f"Quantize with reduce_range (7 bits), use uint8 weights, or set {PRECISE_KEY}=1.",
        saturates,
    ),
    Rule(
        "TC205",
        ERROR,
        "ONNX's Attention was quantized as the contrib operator",
        "The file passes onnx.checker, and ONNX Runtime refuses it.",
        "Quantize again with op_types_to_quantize=['MatMul', 'Gemm'].",
        mistaken_attention,
    ),
    Rule(
        "TC206",
        WARNING,
        "Outlying channels take the int8 codes of an activation",
        "One scale holds the whole tensor, so the other channels are rounded away, and accuracy is lost.",
        "Quantize the weights only (int8 in blocks), leave these products in float, or export with truecast at "
        "int8-dynamic, which divides such channels first.",
        outliers_take_the_codes,
    ),
    Rule(
        "TC207",
        WARNING,
        "8-bit experts that round their inputs",
        "Products take int8 inputs at every accuracy level: results are off by up to a percent.",
        "Use 4 bits, or one scale for a row; or set accuracy_level=4, which says what is done.",
        rounded_experts,
    ),
)
