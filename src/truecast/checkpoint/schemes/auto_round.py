"""AutoRound: its own label on the layouts of GPTQ and AWQ; `packing_format` says on which.

What AutoRound stores in other libraries' layouts under their own `quant_method`, those schemes read.
Source: AutoRound 0.16.1 (inference/backend.py, export/export_to_autoround).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from truecast.checkpoint.schemes import awq, gptq
from truecast.checkpoint.schemes.model import Module, Reading, Scheme, Settings
from truecast.errors import InputError

METHODS = frozenset({"auto-round", "intel/auto-round"})
ALL_WIDTHS = frozenset(range(2, 9))
"""AutoRound stores every width as one stream, 5 to 7 bits too."""
PACKINGS = {
    "auto_round": gptq.Zeros.PLAIN,
    "auto_round:gptqmodel": gptq.Zeros.PLAIN,
    "auto_round:auto_gptq": gptq.Zeros.LESS_ONE,
}
"""Packings in GPTQ's layout, with the convention of their zero points."""
AWQ_PACKING = "auto_round:auto_awq"


def read(module: Module, settings: Settings) -> Reading:
    """One module that AutoRound packed.

    Raises:
        InputError: a packing that is not read, or tensors that contradict each other or the configuration.
    """
    stated = {**settings.quantization, **override(settings.quantization.get("extra_config") or {}, module.name)}
    packing = str(stated.get("packing_format", "auto_round"))
    _require_plain(module, stated)
    if awq.layout(module) is not None and not (gptq.fits(module) and packing in PACKINGS):
        return Reading((awq.weight(module, stated, "AutoRound"),))
    if packing not in PACKINGS:
        known = ", ".join((*PACKINGS, AWQ_PACKING))
        raise module.fail(
            f"is in the packing {packing!r}, and its tensors are not those of AWQ; packings known are {known}",
            "export it in one of them",
        )
    convention = gptq.Convention(PACKINGS[packing], "packing_format" in stated, stream_widths=ALL_WIDTHS)
    return Reading((gptq.weight(module, settings, stated, convention, "AutoRound"),))


def _require_plain(module: Module, stated: Mapping[str, Any]) -> None:
    if stated.get("rotation_config"):
        raise module.fail("was rotated (rotation_config), and its products need a transform", "quantize it without")


def override(rules: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What AutoRound's `extra_config` says of one module: by its name, else the first pattern that matches all of it.

    Raises:
        InputError: a pattern that cannot be read.
    """
    for pattern, values in {name: rules.get(name), **rules}.items():
        try:
            matches = pattern == name or re.fullmatch(pattern, name)
        except re.error as error:
            raise InputError(
                f"quantization_config.extra_config has the pattern {pattern!r}, which cannot be read ({error}); "
                "correct it."
            ) from error
        if matches and isinstance(values, Mapping):
            return {key: value for key, value in values.items() if value is not None}
    return {}


def _claims(module: Module, settings: Settings) -> bool:
    return settings.quantization.get("quant_method") in METHODS


SCHEME = Scheme(
    name="AutoRound",
    methods=METHODS,
    marks=("qweight",),
    parts=gptq.GPTQ_PARTS,
    claims=_claims,
    read=read,
)
