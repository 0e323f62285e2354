"""TC309: files at which ONNX Runtime's own quantization tools end with an exception, or with wrong weights."""

from __future__ import annotations

from truecast.diagnosis.evidence import Evidence
from truecast.diagnosis.model import Seen, seen
from truecast.diagnosis.quantizers import read_light, stops
from truecast.diagnosis.rules.quantization import PRODUCTS, SMALLEST_WEIGHT, WITHOUT_CODES, float_products, has_integers
from truecast.diagnosis.rules.rule import INFO, WARNING, Rule

WRONG = "The quantized file gives wrong results, or does not load, and the quantizer says nothing."


def quantizers_stop(evidence: Evidence) -> Seen | None:
    """What ends `quantize_dynamic` or `quant_pre_process`, where there is something to quantize and nothing is yet."""
    products = float_products(evidence, {**PRODUCTS, **WITHOUT_CODES})
    if has_integers(evidence) or not any(weight.elements >= SMALLEST_WEIGHT for _, weight in products):
        return None
    found = list(stops(read_light(evidence.path), bool(evidence.external)))
    wrong = any(stop.wrong for stop in found)
    return seen(
        (f"{stop.tool}: {stop.reason}" for stop in found),
        severity=WARNING if wrong else None,
        cost=WRONG if wrong else None,
        fix=" ".join(dict.fromkeys(stop.way for stop in found)),
    )


RULES = (
    Rule(
        "TC309",
        INFO,
        "ONNX Runtime's quantizers stop at this file",
        "The model runs; quantize_dynamic or quant_pre_process ends with an exception that does not name the cause.",
        "Go round the step that fails: each has a way of its own, which the finding names.",
        quantizers_stop,
    ),
)
