"""MLX's affine quantization by its definition: w = code · scale + bias, in groups of a row.

`weight` uint32 [N, K · bits / 32], the lowest bits first; `scales` and `biases` [N, groups].
Source: https://github.com/ml-explore/mlx (mlx/ops.cpp, affine_dequantize).
"""

from __future__ import annotations

import numpy as np

from truecast.proof.operators import Array
from truecast.proof.source.words import Parts, Stated, fields, floats, integers, spread


def weight(module: str, parts: Parts, stated: Stated) -> Array:
    """The weight [out, in] in float32."""
    own = stated.get(module)
    said = {**stated, **(own if isinstance(own, dict) else {})}
    words, bits, group = integers(parts["weight"]), int(said["bits"]), int(said["group_size"])
    width = words.shape[1] * 32 // bits
    scales, biases = (spread(floats(parts[name]), group, width) for name in ("scales", "biases"))
    values: Array = fields(words, bits, width).astype(np.float32) * scales
    return values + biases
