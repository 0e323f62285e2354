"""Tensors beside a weight that the weight does not need: scales of activations and of key/value caches.

A checkpoint read weight-only computes with float activations, so these are named to the user and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from truecast.checkpoint.model import StoredTensor
from truecast.checkpoint.schemes.model import Module, Reading, Settings

_INPUT = "it scales quantized activations, and the products here take them in float"
_CACHE = "it scales a quantized key/value cache, and the cache here is float"
_STATISTICS = "it is a statistic of the calibration, which no computation needs"

CACHE_PARTS: Mapping[str, str] = dict.fromkeys(
    (
        *("k_scale", "v_scale", "q_scale", "kv_scale", "prob_output_scale"),
        *("k_zero_point", "v_zero_point", "q_zero_point"),
        *("k_global_scale", "v_global_scale", "q_global_scale"),
    ),
    _CACHE,
)
"""Endings of the cache's tensors, with the reason why no weight needs them."""
ACTIVATION_PARTS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("input_scale", "input_zero_point", "input_global_scale", "input_scale_ub", "activation_scale"),
            *("output_scale", "output_zero_point", "output_global_scale"),
        ),
        _INPUT,
    ),
    "weight_observer": _STATISTICS,
}
"""Endings of the activations' tensors, with the reason why no weight needs them."""
WEIGHT = "weight"
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
ATTENDANTS = frozenset({*CACHE_PARTS, *ACTIVATION_PARTS})


def reading(module: Module, weight: Callable[[Module], StoredTensor]) -> Reading:
    """The reading of a module without its attendants: what `weight` makes of it, unless it is float and stays."""
    reasons = {**CACHE_PARTS, **ACTIVATION_PARTS}
    needed = Module(module.name, {part: tensor for part, tensor in module.parts.items() if part not in reasons})
    ignored = {f"{module.name}.{part}": reasons[part] for part in module.parts if part in reasons}
    return Reading(tuple(needed.parts.values()) if _is_float(needed) else (weight(needed),), ignored)


def only_attendants(module: Module, settings: Settings, methods: frozenset[str]) -> bool:
    """Whether nothing but attendants is beside the weight, if there is one, in a checkpoint that `methods` announce."""
    announced = settings.quantization.get("quant_method") in methods
    return announced and set(module.parts) <= ATTENDANTS | {WEIGHT}


def _is_float(module: Module) -> bool:
    """Whether a module without its attendants has no weight, or one of plain floats and nothing to scale it."""
    weight = module.get(WEIGHT)
    return len(module.parts) == int(weight is not None) and (weight is None or weight.stored_as in FLOATS)
