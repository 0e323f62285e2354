"""The runtimes that graphs are made for: each target is data (its contract) and one writer of side files."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

from truecast.errors import InputError
from truecast.targets.genai import GENAI
from truecast.targets.model import Padding, Target
from truecast.targets.onnxruntime import ONNXRUNTIME
from truecast.targets.portable import PORTABLE

TARGETS: Mapping[str, Target] = MappingProxyType({target.name: target for target in (ONNXRUNTIME, GENAI, PORTABLE)})
"""Every target by its name, the default first."""
MODULE_TARGETS = ("onnxruntime", "portable")
"""Those that run models without a cache."""


def find_target(name: str) -> Target:
    """The target of that name; raises InputError with the nearest name when there is none."""
    if name in TARGETS:
        return TARGETS[name]
    near = get_close_matches(name, TARGETS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(TARGETS)}."
    raise InputError(f"There is no target {name!r}; {hint}")


__all__ = ["MODULE_TARGETS", "TARGETS", "Padding", "Target", "find_target"]
