"""From a plan to its variants: every combination, each named by what sets it apart from the others."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from truecast.errors import InputError
from truecast.request.options import options
from truecast.study.plan import Block, Plan, Variants
from truecast.weights.names import AS_IS, CODES

REFERENCE = "torch fp32"
"""The name of the first variant, with which all others are compared."""
Kind = Literal["torch", "onnx", "file"]

BASELINE_NAMES: Mapping[str, str] = {
    "fp32": REFERENCE,
    "bf16": "torch bf16",
    "compile": "torch compile",
    "torchao-int8": "torchao int8",
}
GPU_PROVIDERS = ("cuda", "tensorrt")
SINGLE = tuple(name for name, said in options() if said.study == "whole")
"""Settings of a block that have one value and name nothing."""
PREFIXES: Mapping[str, str] = {
    "opset": "opset ",
    "block_size": "block ",
    "activations": "activations ",
    "target": "",
    "clean_up": "clean-up ",
}


class Variant(BaseModel):
    """One thing to measure. `settings` are what sets it up: of the export, or {"baseline": …} of PyTorch."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Kind
    settings: dict[str, Any] = Field(default_factory=dict)
    provider: str = "cpu"

    @property
    def slug(self) -> str:
        """The name as a file's name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-.")


def expand(plan: Plan) -> tuple[Variant, ...]:
    """The baselines, the float32 one first, then every combination of every block, each once."""
    combined = list(itertools.chain.from_iterable(map(_combinations, plan.variants)))
    distinct = [settings for number, settings in enumerate(combined) if settings not in combined[:number]]
    varying = _varying(distinct)
    variants = [_variant(settings, varying) for settings in distinct]
    _require_apart(variants)
    return (*_baselines(plan, variants), *variants)


def _combinations(block: Block) -> Iterable[dict[str, Any]]:
    given = {name: block.given(name) for name in block.model_fields_set if block.given(name) is not None}
    lists = {name: value for name, value in given.items() if name not in SINGLE}
    order = [name for name in Variants.model_fields if name in lists]
    fixed = {name: str(value) if isinstance(value, Path) else value for name, value in given.items() if name in SINGLE}
    for values in itertools.product(*(lists[name] for name in order)):
        yield _heeded(dict(zip(order, values, strict=True)) | fixed)


def _heeded(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without those of codes in blocks where a precision of the block's list makes none."""
    precisions = [settings.get("precision", "int4"), *(rule.rpartition("=")[2] for rule in settings.get("keep", ()))]
    made = set(CODES).intersection(precisions)
    idle = set() if made else {"block_size"} if AS_IS in precisions else {"block_size", "activations"}
    return {name: value for name, value in settings.items() if name not in idle}


def _varying(combined: list[dict[str, Any]]) -> list[str]:
    """The settings that are not the same everywhere, in the plan's order; the precision always names."""
    names = [name for name in Variants.model_fields if name not in SINGLE]
    return [name for name in names if name == "precision" or len({one.get(name) for one in combined}) > 1]


def _variant(settings: dict[str, Any], varying: list[str]) -> Variant:
    provider = settings.get("provider", "cpu")
    if "file" in settings:
        words = [Path(settings["file"]).stem, *([provider] if "provider" in varying else [])]
        return Variant(name=" ".join(words), kind="file", settings=settings, provider=provider)
    named = [f"{PREFIXES.get(name, '')}{settings[name]}" for name in varying if name in settings]
    return Variant(name=" ".join(("onnx", *named)), kind="onnx", settings=settings, provider=provider)


def _baselines(plan: Plan, variants: list[Variant]) -> list[Variant]:
    """PyTorch on the processor, and on a GPU where a variant is meant for one."""
    kinds = ("fp32", *plan.baselines)
    found = [Variant(name=BASELINE_NAMES[kind], kind="torch", settings={"baseline": kind}) for kind in kinds]
    if any(variant.provider in GPU_PROVIDERS for variant in variants):
        found += [
            Variant(name=f"{BASELINE_NAMES[kind]} cuda", kind="torch", settings={"baseline": kind}, provider="cuda")
            for kind in kinds
        ]
    return found


def _require_apart(variants: list[Variant]) -> None:
    """Raises InputError when two variants have one name (files with one stem, or a difference that names nothing)."""
    seen: dict[str, Variant] = {}
    for variant in variants:
        if variant.slug in seen:
            raise InputError(
                f"Two variants of the plan are called {variant.name!r}; give the files different names, or make the "
                "blocks differ in more than verify, keep and calibration."
            )
        seen[variant.slug] = variant
