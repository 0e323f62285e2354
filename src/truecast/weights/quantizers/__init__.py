"""Making codes from floats, a run of rows at a time: one file per method, the same bytes on every machine.

Data flow: rows [n, width] → `in_blocks` (columns of one block each) → a method's codes, scales, and zero points or
offsets → `Quantized`. Every block is made from its own weights alone, so it does not matter which rows come together.

| method | a weight is | what is searched for |
|---|---|---|
| rtn | (code - middle) · scale | nothing: round to nearest |
| k-quant | (code - zero) · scale | the scale, by weighted least squares |
| hqq | (code - middle) · scale + offset | the offset, for the 3/4-norm of the error |

Why not ONNX Runtime's own functions for the last two: its k-quant (1.31) rounds the zero point after the search, which
left more error than no search did (0.15 dB on Gemma 3 270M) and loses blocks that do not hold a zero, at 1.2 million
weights per second; its HQQ stops by the mean error of all rows that it is given at once, so that a weight's codes would
depend on its neighbours, and needs PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from truecast.checkpoint.model import Array
from truecast.weights.quantizers.blocks import Quantized
from truecast.weights.quantizers.hqq import hqq_rows
from truecast.weights.quantizers.k_quant import k_quant_rows
from truecast.weights.quantizers.rtn import rtn_rows

Quantizer = Callable[[Array, int, int], Quantized]
"""float32 rows [n, width], bits (4 or 8) and block size → their codes."""


@dataclass(frozen=True)
class Method:
    """One way of making codes; `zeros` and `offsets` say what it makes beside codes and scales."""

    quantize: Quantizer
    words: str
    zeros: bool = False
    offsets: bool = False


STREAMED: Mapping[str, Method] = {
    "rtn": Method(rtn_rows, "symmetric"),
    "k-quant": Method(k_quant_rows, "k-quant", zeros=True),
    "hqq": Method(hqq_rows, "hqq", offsets=True),
}
"""Methods that need nothing but the weight itself."""
DEFAULT_METHOD = "rtn"
