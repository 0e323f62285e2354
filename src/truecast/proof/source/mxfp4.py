"""MXFP4 experts of gpt-oss by their definition: 4-bit floats in blocks of 32 that share a power of two.

`blocks` uint8 [experts, out, in / 32, 16], the first of two codes in the low bits; `scales` uint8 [experts, out, in /
32]. The parameter of transformers is the transpose, [experts, in, out].
Source: OCP Microscaling Formats (MX) Specification 1.0; https://github.com/openai/gpt-oss (gpt_oss/torch/weights.py).
"""

from __future__ import annotations

import numpy as np

from truecast.proof.operators import Array
from truecast.proof.source.words import E2M1, Parts, Stated, exponents, fields, integers


def weight(module: str, parts: Parts, stated: Stated) -> Array:
    """The weight [experts, in, out] in float32."""
    blocks, scales = integers(parts["_blocks"]), exponents(parts["_scales"])
    values: Array = E2M1[fields(blocks, 4, 32)] * scales[..., None]
    return np.ascontiguousarray(values.reshape(*scales.shape[:2], -1).transpose(0, 2, 1))
