"""The scales of a key/value cache that a checkpoint brings along, as compressed-tensors writes them.

`quantization_config.kv_cache_scheme` says what codes they are for, `….layers.N.self_attn.k_scale` and `v_scale` hold
them: one number, one per head, or one per channel. Keys are scaled as the cache holds them, rotated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from truecast.checkpoint.model import Array, Checkpoint, StoredTensor
from truecast.checkpoint.schemes import quantization_settings
from truecast.errors import InputError
from truecast.weights.cache import CacheScales, cached_attention

_NAME = re.compile(r"\.(\d+)\.\w+\.([kv]_(?:scale|zero_point))$")


def stored_scales(checkpoint: Checkpoint, model: ir.Model, bits: int) -> tuple[dict[int, CacheScales], str]:
    """The checkpoint's own scales by layer, or none and the sentence that says why they cannot be used.

    The sentence is empty where the checkpoint has none, or they can be used. Raises InputError when they are damaged.
    """
    found = by_layer(checkpoint)
    if not found:
        return {}, ""
    if obstacle := _obstacle(checkpoint, found, bits):
        return {}, f"The checkpoint's own scales of the cache were not used: {obstacle}. They were calibrated instead."
    nodes = cached_attention(model)
    whole = {layer for layer, parts in found.items() if {"k_scale", "v_scale"} <= set(parts)}
    if missing := sorted(set(nodes) - whole):
        raise InputError(
            f"{checkpoint.path} has scales of the cache, but none for layer {missing[0]}; save the checkpoint again."
        )
    return {layer: _scales(found[layer], nodes[layer]) for layer in nodes}, ""


def by_layer(checkpoint: Checkpoint) -> dict[int, dict[str, StoredTensor]]:
    """The tensors that scale the cache by layer and by their last name."""
    found: dict[int, dict[str, StoredTensor]] = {}
    for name, tensor in checkpoint.cache_scales.items():
        if match := _NAME.search(name):
            found.setdefault(int(match[1]), {})[match[2]] = tensor
    return found


def _obstacle(checkpoint: Checkpoint, found: Mapping[int, Mapping[str, StoredTensor]], bits: int) -> str:
    scheme: Mapping[str, Any] = (quantization_settings(checkpoint.config) or {}).get("kv_cache_scheme") or {}
    kind, width = str(scheme.get("type", "float")), scheme.get("num_bits", 8)
    if kind != "int":
        return f"they are for float{width} codes, for which ONNX Runtime's attention has no kernel on the CPU"
    if width != bits:
        return f"they are for {width} bits"
    if scheme.get("dynamic"):
        return "they are meant to be made anew for every token"
    points = (t for parts in found.values() for part, t in parts.items() if part.endswith("zero_point"))
    if any(np.any(tensor.read().astype(np.float32)) for tensor in points):
        return "they have zero points, which the operator does not take"
    return ""


def _scales(parts: Mapping[str, StoredTensor], node: ir.Node) -> CacheScales:
    past = node.inputs[3]
    assert past is not None and past.shape is not None
    heads, width = past.shape[1], past.shape[3]
    assert isinstance(heads, int) and isinstance(width, int)
    key, value = (spread(parts[name], heads, width) for name in ("k_scale", "v_scale"))
    return CacheScales(key, value, (parts["k_scale"].name, parts["v_scale"].name))


def spread(tensor: StoredTensor, heads: int, width: int) -> Array:
    """A stored scale as one per head and channel, float32; raises InputError for one that is damaged."""
    scale = tensor.read().astype(np.float32)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise InputError(f"{tensor.name} in {tensor.location.path} is not a positive number; save it again.")
    shapes = {1: (1, 1), heads: (heads, 1), heads * width: (heads, width)}
    if scale.size not in shapes:
        raise InputError(
            f"{tensor.name} in {tensor.location.path} has {scale.size} values, which are neither one, nor one for each "
            f"of {heads} heads, nor for their {width} channels; save the checkpoint with a scale per tensor."
        )
    return np.ascontiguousarray(np.broadcast_to(scale.reshape(shapes[scale.size]), (heads, width)))
