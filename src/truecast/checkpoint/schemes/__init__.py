"""The schemes: what a folder's tensors are, when a library has quantized them.

Data flow: tensors and config.json → the scheme of each module that carries a mark (the one that config.json names is
asked first) → the same tensors with encoded weights in place of codes, scales and zero points.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truecast.checkpoint.model import StoredTensor
from truecast.checkpoint.schemes import (
    auto_round,
    awq,
    bitsandbytes,
    compressed_tensors,
    fp8,
    gptq,
    hqq,
    mlx,
    modelopt,
    mxfp4,
    quark,
    torchao,
)
from truecast.checkpoint.schemes.attendants import CACHE_PARTS
from truecast.checkpoint.schemes.model import Reading, Scheme, Settings
from truecast.errors import InputError

SCHEMES: tuple[Scheme, ...] = (
    auto_round.SCHEME,
    awq.SCHEME,
    bitsandbytes.SCHEME,
    compressed_tensors.SCHEME,
    fp8.SCHEME,
    gptq.SCHEME,
    hqq.SCHEME,
    mlx.SCHEME,
    modelopt.SCHEME,
    mxfp4.SCHEME,
    quark.SCHEME,
    torchao.SCHEME,
)

CONFIG_KEYS = ("quantization_config", "compression_config", "quantization")
"""Where config.json says how the weights were quantized; the second is the older name, the third is MLX's."""

FILES_BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files that say it where config.json does not, as AutoGPTQ and AutoAWQ first wrote them, and whose they are."""


@dataclass(frozen=True)
class Resolved:
    """A folder's tensors with encoded weights; `quantization` names the schemes that were found.

    `ignored`, `notices` and `cache_scales` are as in `Checkpoint`.
    """

    tensors: Mapping[str, StoredTensor]
    ignored: Mapping[str, str]
    quantization: str | None
    notices: tuple[str, ...] = ()
    cache_scales: Mapping[str, StoredTensor] = field(default_factory=dict)


def quantization_settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What config.json says of the quantization, or None."""
    found = (config.get(key) for key in CONFIG_KEYS)
    return next((value for value in found if isinstance(value, dict)), None)


def method_of(stated: Mapping[str, Any]) -> str | None:
    """Who quantized the weights; MLX says nothing but how."""
    plain = {"group_size", "bits"} <= stated.keys()
    return str(stated.get("quant_method") or "") or (mlx.METHOD if plain else None)


def settings_beside(folder: Path) -> Mapping[str, Any] | None:
    """What a file beside config.json says of the quantization, or None.

    Raises:
        InputError: the file is not a JSON object.
    """
    for name, method in FILES_BESIDE.items():
        if (folder / name).is_file():
            try:
                stated = json.loads((folder / name).read_bytes())
            except (ValueError, RecursionError) as error:
                raise InputError(f"{folder / name} is not readable JSON ({error}); restore it.") from error
            if not isinstance(stated, dict):
                raise InputError(f"{folder / name} is not a JSON object; restore it from the model's source.")
            return {"quant_method": method, **stated}
    return None


def resolve(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    metadata: Mapping[str, str],
    schemes: Sequence[Scheme] = SCHEMES,
) -> Resolved:
    """Finds the quantized modules and reads them.

    Raises:
        InputError: a quantization that no scheme knows, or tensors that contradict each other.
    """
    stated = quantization_settings(config) or settings_beside(folder)
    settings = Settings(folder, stated or {}, config, metadata)
    method = method_of(settings.quantization)
    left, names = dict(tensors), list[str]()
    found: dict[str, StoredTensor] = {}
    ignored: dict[str, str] = {}
    cache_scales: dict[str, StoredTensor] = {}
    for scheme in sorted(schemes, key=lambda scheme: method not in scheme.methods):
        for module in scheme.modules(left):
            if not scheme.claims(module, settings):
                continue
            reading: Reading = scheme.read(module, settings)
            for part in module.parts:
                del left[f"{module.name}.{part}"]
            found |= {tensor.name: tensor for tensor in reading.tensors}
            ignored |= dict(reading.ignored)
            cache_scales |= {tensor.name: tensor for part, tensor in module.parts.items() if part in CACHE_PARTS}
            names.append(scheme.name)
    notices = () if stated is None or found else (_nothing_found(folder, method, schemes),)
    for tensor in left.values():
        _require_float(tensor, method)
    return Resolved(left | found, ignored, ", ".join(dict.fromkeys(names)) or None, notices, cache_scales)


def _nothing_found(folder: Path, method: str | None, schemes: Sequence[Scheme]) -> str:
    """The notice that no tensor is quantized as the configuration says; raises where its method is not known."""
    known = sorted({name for scheme in schemes for name in scheme.methods})
    if method not in known:
        said = "does not say by what it is quantized" if method is None else f"is quantized by {method!r}"
        raise InputError(
            f"{folder} {said}, which is not known; known are {', '.join(known)}. "
            "Give the float checkpoint it was made from."
        )
    return f"The configuration says that {method} quantized the model, but none of its tensors is quantized."


def _require_float(tensor: StoredTensor, method: str | None) -> None:
    """A matrix of integers or of 8-bit floats that no scheme took is no weight that can be used as it is.

    Nobody keeps codes in 64 bits: such integers are positions or counts.
    """
    coded = (tensor.dtype.kind in "iub" and tensor.dtype.itemsize < 8) or tensor.dtype.itemsize < 2
    if len(tensor.shape) in (2, 3) and coded:
        raise InputError(
            f"{tensor.name} in {tensor.location.path} is stored as {tensor.stored_as}, and nothing beside it says what "
            f"its codes mean (quant_method {method}); give a checkpoint with all of its tensors."
        )
