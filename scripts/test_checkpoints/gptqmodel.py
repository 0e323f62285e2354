"""Makes tests/data/gptqmodel-*: tiny models quantized by GPTQModel, with its own decoded weights.

Run from the repository's root, in an environment with gptqmodel 7.7.0 (installed without its dependency on a newer
torch), transformers 5.23.0 and torch 2.13.0 (CPU):

    python -m scripts.test_checkpoints.gptqmodel

The oracle is `dequantize_weight` of GPTQModel's own modules with float32 scales, after the conversion of zero points
that its loader makes. AWQ's layouts for GPU kernels are packed by its modules too, one module each; no CPU can decode
them, so the oracle is the formula on the codes, scales and zero points that were packed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

# ruff: noqa: E402, I001 - GPTQModel counts the cores when it is imported, and refuses to calibrate on fewer than four.
os.cpu_count = lambda: 4

from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.nn_modules.qlinear.gemv_awq import AwqGEMVLinear
from gptqmodel.nn_modules.qlinear.gemv_fast_awq import AwqGEMVFastLinear, LLMAwqLinear
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization import FORMAT
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

from scripts.test_checkpoints.oracle_files import DATA, base_model, complete, float32_hash, tiny_case

UNTIED = {"tie_word_embeddings": False}
DYNAMIC = {r"-:.*k_proj": {}, r"+:.*\.1\.mlp\.down_proj": {"bits": 8, "group_size": 64}}
LENGTH, SAMPLES = 64, 4
"""Tokens and number of the texts to calibrate with."""


@dataclass(frozen=True)
class Variant:
    """One checkpoint: GPTQModel's settings, and changes of the model's shape."""

    settings: Mapping[str, Any]
    shape: Mapping[str, Any] = field(default_factory=dict)
    positive: bool = False


VARIANTS = {
    "gptqmodel-act-order": Variant({"bits": 4, "desc_act": True, "act_group_aware": False}),
    "gptqmodel-act-order-v2": Variant(
        {"bits": 4, "desc_act": True, "act_group_aware": False, "sym": False, "format": FORMAT.GPTQ_V2}
    ),
    # Rows of positive weights have zero points of 0, which v1 stores as -1: the words' fields borrow.
    "gptqmodel-positive": Variant({"bits": 4, "desc_act": False, "sym": False}, positive=True),
    "gptqmodel-positive-3bit": Variant({"bits": 3, "desc_act": False, "sym": False}, positive=True),
    "gptqmodel-dynamic-head": Variant({"bits": 4, "dynamic": DYNAMIC, "lm_head": True}, UNTIED),
    "gptqmodel-3bit-planes": Variant({"bits": 3, "sym": False, "format": FORMAT.GPTQ_P}),
    "gptqmodel-6bit-planes": Variant({"bits": 6, "sym": False, "format": FORMAT.GPTQ_P}),
}


def decoded(parts: Mapping[str, torch.Tensor], stated: Mapping[str, Any]) -> torch.Tensor:
    """A module's weight [out, in] in float32, by GPTQModel itself."""
    width, rows = len(parts["g_idx"]), parts["scales"].shape[1]
    bits = parts["qzeros"].shape[1] * 32 // rows
    label = FORMAT(stated["checkpoint_format"])
    module = TorchLinear(
        bits=bits, group_size=32, sym=False, desc_act=True, in_features=width, out_features=rows, format=label
    )
    for name, part in parts.items():
        module.register_buffer(name, part.float() if name == "scales" else part)
    module.post_init()
    if label is FORMAT.GPTQ:
        convert_gptq_v1_to_v2_format_module(module, bits, torch.int32)
    weight: torch.Tensor = module.dequantize_weight()
    return weight.T


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every quantized weight of a checkpoint."""
    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    tensors = load_file(folder / "model.safetensors")
    names = [key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight")]
    wanted = ("qweight", "qzeros", "scales", "g_idx")
    return {f"{name}.weight": decoded({key: tensors[f"{name}.{key}"] for key in wanted}, stated) for name in names}


def make_positive(folder: Path) -> None:
    """Makes every third row of the products' weights positive."""
    changed = load_file(folder / "model.safetensors")
    for name, tensor in changed.items():
        if "proj" in name:
            tensor[::3] = tensor[::3].abs()
    save_file(changed, folder / "model.safetensors", {"format": "pt"})


def make(name: str, variant: Variant) -> None:
    """Writes tests/data/NAME."""
    case = tiny_case(name, **variant.shape)
    with base_model(case) as base, tempfile.TemporaryDirectory() as output:
        if variant.positive:
            make_positive(base)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, 256, (SAMPLES, LENGTH), generator=generator)
        texts = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in tokens]
        model = GPTQModel.load(
            str(base), QuantizeConfig(group_size=32, device="cpu", **variant.settings), backend=BACKEND.AUTO
        )
        model.quantize(texts, batch_size=1)
        model.save(output)
        shutil.rmtree(DATA / name, ignore_errors=True)
        (DATA / name).mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            shutil.copyfile(Path(output) / file, DATA / name / file)
        complete(DATA / name, base, weights(Path(output)), {"gptqmodel": version("gptqmodel")})


LAYOUTS = {
    "gptqmodel-awq-gemv": (AwqGEMVLinear, torch.int32, 128, "gemv"),
    "gptqmodel-awq-gemv-fast": (AwqGEMVFastLinear, torch.int16, 64, "gemv_fast"),
    "gptqmodel-awq-llm-awq": (LLMAwqLinear, torch.int16, 32, "llm-awq"),
}
"""AWQ's layouts for GPU kernels: the class that packs, the type of its words, the length of a group, its name."""
LAYOUT_ROWS, LAYOUT_WIDTH = 64, 256


def make_layout(name: str, kind: Any, words: torch.dtype, group: int, label: str) -> None:
    """Writes tests/data/NAME with the one module `p`."""
    torch.manual_seed(0)
    groups = LAYOUT_WIDTH // group
    codes = torch.randint(0, 16, (LAYOUT_ROWS, LAYOUT_WIDTH))
    zeros = torch.randint(0, 16, (LAYOUT_ROWS, groups))
    scales = (torch.rand(LAYOUT_ROWS, groups) / 10 + 0.01).half()
    each_zero, each_scale = zeros.repeat_interleave(group, 1), scales.float().repeat_interleave(group, 1)
    linear = nn.Linear(LAYOUT_WIDTH, LAYOUT_ROWS, bias=False)
    weight = (codes - each_zero) * each_scale
    linear.weight.data = weight
    module = kind(4, group, False, False, LAYOUT_WIDTH, LAYOUT_ROWS, pack_dtype=words)
    module.pack(linear, scales.float(), zeros.float())
    if label != "gemv":  # which keeps the product of scale and zero point, rounded to half
        offsets = (-(scales.float() * zeros)).half().float()
        weight = codes * each_scale + offsets.repeat_interleave(group, 1)
    folder = DATA / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts = {f"p.{part}": tensor.contiguous() for part, tensor in module.named_buffers()}
    save_file(parts, folder / "model.safetensors")
    stated = {"quant_method": "awq", "bits": 4, "group_size": group, "version": label, "zero_point": True}
    config = {"model_type": "llama", "quantization_config": stated}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    oracle = {"versions": {"gptqmodel": version("gptqmodel")}, "weights": {"p.weight": float32_hash(weight)}}
    (folder / "oracle.json").write_text(json.dumps(oracle, indent=1) + "\n")


def main() -> None:
    """Makes all of them."""
    for name, variant in VARIANTS.items():
        make(name, variant)
    for name, layout in LAYOUTS.items():
        make_layout(name, *layout)


if __name__ == "__main__":
    main()
