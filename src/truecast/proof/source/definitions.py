"""A folder's tensors decoded by the definitions of the formats, one at a time, as they are asked for.

Data flow: config.json and the names in the files → the modules that carry the marks of a format → under the names of
their weights, what the format's definition makes of their parts. Everything else stays as the safetensors library
reads it. Nothing here knows of the exporter's reader.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from truecast.proof.operators import Array
from truecast.proof.source import awq, bitsandbytes, compressed, floats, gptq, hqq, mlx, mxfp4, quark, torchao
from truecast.proof.source.words import Parts, Stated

Definition = Callable[[str, Parts, Stated], Array]
CONFIGS = ("quantization_config", "compression_config", "quantization")
BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files beside config.json with the settings of older checkpoints, and whose they are."""
MARKS = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv", "W_q", "_weight_qdata", "SCB", "biases")
MLX_MARK = "scales"
"""Beside the weights of MLX's floats, where the configuration names no method, as MLX's does not."""
BLOCKS = "_blocks"
NF4 = "weight.quant_state.bitsandbytes__"


@dataclass(frozen=True)
class Decoded:
    """A tensor that is made when it is indexed, as a slice of the safetensors library is."""

    make: Callable[[], Tensor]

    def __getitem__(self, index: Any) -> Tensor:
        return self.make()[index]


def stated_of(folder: Path) -> Stated | None:
    """What the folder says of its quantization; None for floats."""
    config = json.loads((folder / "config.json").read_bytes())
    found = next((config[key] for key in CONFIGS if isinstance(config.get(key), dict)), None)
    for name, method in BESIDE.items():
        if found is None and (folder / name).is_file():
            found = {"quant_method": method, **json.loads((folder / name).read_bytes())}
    return found


def files_of(folder: Path) -> list[Path]:
    """The files that transformers reads: the one that config.json names, else the one, else those of the index."""
    named = json.loads((folder / "config.json").read_bytes()).get("transformers_weights")
    single = folder / (named or "model.safetensors")
    if single.is_file() and single.suffix == ".safetensors":
        return [single]
    index = json.loads((folder / (named or "model.safetensors.index.json")).read_bytes())
    return [folder / name for name in dict.fromkeys(index["weight_map"].values())]


def decoded(folder: Path) -> dict[str, Decoded]:
    """Every tensor by name; in place of codes, scales and zero points the weight that they stand for."""
    stated, readers = dict(stated_of(folder) or {}), dict[str, Callable[[], Tensor]]()
    for file in files_of(folder):
        opened: Any = safe_open(file, framework="pt")
        readers |= {name: partial(opened.get_tensor, name) for name in opened.keys()}  # noqa: SIM118
        stated[torchao.METADATA] = {**stated.get(torchao.METADATA, {}), **(opened.metadata() or {})}
    named = "quant_method" in stated or "bits" not in stated
    modules = dict(_modules(readers, MARKS if named else (*MARKS, MLX_MARK)))
    taken = {name for parts in modules.values() for name in parts.values()}
    left = {name: Decoded(read) for name, read in readers.items() if name not in taken}
    for module, names in modules.items():
        parts = {part: readers[name] for part, name in names.items()}
        left[module if BLOCKS in parts else f"{module}.weight"] = Decoded(partial(_decode, module, parts, stated))
    return left


def _decode(module: str, readers: Mapping[str, Callable[[], Tensor]], stated: Stated) -> Tensor:
    parts = {name: read() for name, read in readers.items()}
    return torch.from_numpy(_definition(parts, stated)(module, parts, stated).copy())


def _modules(names: Mapping[str, Any], marks: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The modules with marks, and the tensors of each by what follows its name; a bias stays what it is."""
    stacks = [name.removesuffix(BLOCKS) for name in names if name.endswith(BLOCKS)]
    yield from ((name, {part: name + part for part in (BLOCKS, "_scales")}) for name in stacks)
    marked = {name.removesuffix(f".{mark}") for mark in marks for name in names if name.endswith(f".{mark}")}
    marked |= {name.partition(f".{NF4}")[0] for name in names if f".{NF4}" in name}
    parts: dict[str, dict[str, str]] = {}
    for name in names:
        pieces = name.split(".")
        owner = next((o for i in range(1, len(pieces)) if (o := ".".join(pieces[:i])) in marked), None)
        if owner is not None and name != f"{owner}.bias":
            parts.setdefault(owner, {})[name.removeprefix(f"{owner}.")] = name
    yield from parts.items()


def _definition(parts: Parts, stated: Stated) -> Definition:
    method = str(stated.get("quant_method", ""))
    if "qweight" in parts:
        packed = str(stated.get("packing_format", ""))
        fits = parts["qweight"].shape[1] == parts["scales"].shape[1]
        return awq.weight if method == "awq" or "awq" in packed or not (method or fits) else gptq.weight
    told = {"W_q": hqq, "_weight_qdata": torchao, BLOCKS: mxfp4, "SCB": bitsandbytes, "biases": mlx, MLX_MARK: mlx}
    module: Any = next((definition for part, definition in told.items() if part in parts), None)
    if module is not None:
        found: Definition = module.weight
        return found
    if any("bitsandbytes__" in part for part in parts):
        return bitsandbytes.weight
    if method == "quark":
        return quark.weight
    integers = not parts["weight"].is_floating_point() if "weight" in parts else True
    second = "weight_scale_2" in parts or method.startswith("modelopt")
    return compressed.weight if not second and (integers or method == "compressed-tensors") else floats.weight
