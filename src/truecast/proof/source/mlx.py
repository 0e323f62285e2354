"""MLX's quantizations by their definitions, in groups of a row.

`weight` uint32 [N, K · bits / 32], the lowest bits first. Mode `affine`: w = code · scale + bias, with `scales` and
`biases` [N, groups]. Modes `mxfp4`, `mxfp8`, `nvfp4`: floats of 4 or 8 bits times `scales` uint8 [N, groups], which are
powers of two, but floats of 8 bits for `nvfp4`.
Sources: https://github.com/ml-explore/mlx (mlx/ops.cpp, affine_dequantize, fp_quantize); OCP Microscaling Formats 1.0.
"""

from __future__ import annotations

import numpy as np
import torch

from truecast.proof.operators import Array
from truecast.proof.source.words import E2M1, Parts, Stated, exponents, fields, floats, integers, raw, spread

AFFINE, EIGHT_BIT_SCALES = "affine", "nvfp4"


def weight(module: str, parts: Parts, stated: Stated) -> Array:
    """The weight [out, in] in float32."""
    own = stated.get(module)
    said = {**stated, **(own if isinstance(own, dict) else {})}
    words, bits, group = integers(parts["weight"]), int(said["bits"]), int(said["group_size"])
    width = words.shape[1] * 32 // bits
    mode = said.get("mode", AFFINE)
    if mode == AFFINE:
        scales, biases = (spread(floats(parts[name]), group, width) for name in ("scales", "biases"))
        values: Array = fields(words, bits, width).astype(np.float32) * scales
        return values + biases
    stored = parts["scales"]
    table = _eight_bits(stored).reshape(stored.shape) if mode == EIGHT_BIT_SCALES else exponents(stored)
    codes = E2M1[fields(words, bits, width)] if bits == 4 else _eight_bits(parts["weight"]).reshape(len(words), width)
    scaled: Array = codes * spread(table, group, width)
    return scaled


def _eight_bits(stored: torch.Tensor) -> Array:
    """The floats of 8 bits (E4M3) in a tensor's bytes: float32 [n]."""
    return floats(torch.from_numpy(raw(stored).copy()).view(torch.float8_e4m3fn))
