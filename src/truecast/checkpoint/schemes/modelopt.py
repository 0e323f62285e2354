"""NVIDIA Model Optimizer: NVFP4 with two scales that are both multiplied, and float8.

Data flow: the parts of a module → their types tell NVFP4 from float8 → a codebook.

Older files state nothing in config.json (their `hf_quant_config.json` is not needed): the tensors tell.
"""

from __future__ import annotations

import numpy as np

from truecast.checkpoint.model import StoredTensor
from truecast.checkpoint.schemes.attendants import ATTENDANTS, CACHE_PARTS, only_attendants, reading
from truecast.checkpoint.schemes.grids import E4M3, EXPONENT_TYPES, grid
from truecast.checkpoint.schemes.minifloats import DEFAULT_BLOCKS, FLOAT8, MX_GROUP, NV_GROUP, float4, float8
from truecast.checkpoint.schemes.model import Module, Reading, Scheme, Settings

NAME = "ModelOpt"
METHODS = frozenset({"modelopt", "modelopt_fp4", "modelopt_mixed", "modelopt_mxfp8"})
SCALE, SECOND, SMOOTHING = "weight_scale", "weight_scale_2", "pre_quant_scale"


def _claims(module: Module, settings: Settings) -> bool:
    weight = module.get("weight")
    announced = settings.quantization.get("quant_method") in METHODS
    if weight is None or SCALE not in module.parts:
        return SMOOTHING in module.parts or only_attendants(module, settings, METHODS)
    if weight.dtype == np.uint8:
        return announced or SECOND in module.parts
    return announced and weight.dtype in FLOAT8


def _read(module: Module, settings: Settings) -> Reading:
    if SMOOTHING in module.parts:
        raise module.fail(
            f"has a {SMOOTHING}, by which its activations are multiplied, and no product here multiplies them",
            "give a checkpoint quantized without AWQ's activation scales, or the float one",
        )
    return reading(module, _weight)


def _weight(module: Module) -> StoredTensor:
    scale = module[SCALE]
    if module["weight"].dtype in FLOAT8:
        is_mx = scale.dtype in EXPONENT_TYPES
        return float8(module, NAME, SCALE, [(1, MX_GROUP)] if is_mx else DEFAULT_BLOCKS)
    rows, columns = module.matrix("weight")
    if scale.dtype != E4M3:
        raise module.fail(
            f"holds bytes with a {SCALE} of {scale.stored_as}, and only NVFP4, whose scales are F8_E4M3, is known",
            "give a checkpoint quantized as NVFP4 or FP8, or the float one",
        )
    if module[SECOND].size != 1:
        raise module.fail(f"has a {SECOND} of shape {list(module[SECOND].shape)}, and one number is expected")
    groups = grid(module, SCALE, (rows, columns * 2), [(1, NV_GROUP)])
    whole = grid(module, SECOND, (rows, columns * 2))
    return float4(module, f"{NAME} NVFP4", "weight", NV_GROUP, (groups.factor, whole.factor))


SCHEME = Scheme(
    name=NAME,
    methods=METHODS,
    marks=(SCALE, SECOND, SMOOTHING, *CACHE_PARTS),
    parts=frozenset({"weight", SCALE, SECOND, SMOOTHING} | ATTENDANTS),
    claims=_claims,
    read=_read,
)
