"""Makes tests/data/auto-round-*: tiny models quantized by AutoRound in its three layouts, with its own decoded weights.

Run from the repository's root, in an environment with auto-round 0.16.1, transformers 5.23.0 and torch 2.13.0 (CPU):

    python -m scripts.test_checkpoints.auto_round

The oracle is what AutoRound's own modules multiply by: their `forward` is executed in float32, and the matrix that it
hands to `torch.matmul` is the decoded weight.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from auto_round import AutoRound
from auto_round.export.export_to_awq.utils import dequantize_gemm
from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp
from safetensors.torch import load_file
from scripts.test_checkpoints.oracle_files import DATA, base_model, complete, tiny_case
from transformers import AutoModelForCausalLM, AutoTokenizer

UNTIED = {"tie_word_embeddings": False}
LARGE, HEAD = {"bits": 8}, {"bits": 4, "group_size": 32, "sym": True}


@dataclass(frozen=True)
class Variant:
    """One checkpoint: AutoRound's arguments and format, and changes of the model's shape."""

    format: str
    bits: int = 4
    sym: bool = True
    group_size: int = 32
    layers: Mapping[str, Any] = field(default_factory=dict)
    shape: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = {
    "auto-round-gptq-4bit": Variant("auto_gptq"),
    "auto-round-gptq-4bit-asym": Variant("auto_gptq", sym=False),
    "auto-round-gptq-2bit-asym": Variant("auto_gptq", 2, sym=False),
    "auto-round-gptq-3bit-asym": Variant("auto_gptq", 3, sym=False),
    "auto-round-gptq-8bit-row": Variant("auto_gptq", 8, group_size=-1),
    "auto-round-awq": Variant("auto_awq", sym=False),
    "auto-round-awq-sym": Variant("auto_awq"),
    "auto-round-4bit-head": Variant("auto_round", layers={"lm_head": HEAD, "mlp.down_proj": LARGE}, shape=UNTIED),
    "auto-round-3bit-asym": Variant("auto_round", 3, sym=False),
    "auto-round-4bit-asym": Variant("auto_round", sym=False),
    "auto-round-5bit-asym": Variant("auto_round", 5, sym=False),
}


def decoded(parts: Mapping[str, torch.Tensor], stated: Mapping[str, Any], bits: int, group: int) -> torch.Tensor:
    """A module's weight [out, in] in float32, by AutoRound itself."""
    scales = parts["scales"].float()
    if parts["qweight"].shape[1] != scales.shape[1]:
        return dequantize_gemm(parts["qweight"], parts["qzeros"], scales, bits, group).T
    plain = stated["quant_method"] == "auto-round" and "gptq" not in stated["packing_format"]
    library = qlinear_torch if plain else qlinear_torch_zp
    width = parts["qweight"].shape[0] * 32 // bits
    module = library.QuantLinear(bits, group, width, scales.shape[1], bias=False)
    module.qweight, module.qzeros, module.scales = parts["qweight"], parts["qzeros"], scales
    with mock.patch.object(torch, "matmul", side_effect=torch.matmul) as product:
        module(torch.zeros(1, width))
    weight: torch.Tensor = product.call_args.args[1]
    return weight.T


def weights(folder: Path, variant: Variant) -> dict[str, torch.Tensor]:
    """Every quantized weight of a checkpoint."""
    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    tensors = load_file(folder / "model.safetensors")
    result = {}
    for name in (key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight")):
        parts = {key: tensors[f"{name}.{key}"] for key in ("qweight", "qzeros", "scales")}
        settings = next((value for key, value in variant.layers.items() if key in name), {})
        bits = settings.get("bits", variant.bits)
        width = parts["qweight"].shape[0] * 32 // bits
        if parts["qweight"].shape[1] != parts["scales"].shape[1]:
            width = parts["qweight"].shape[0]
        group = width if variant.group_size == -1 else variant.group_size
        result[f"{name}.weight"] = decoded(parts, stated, bits, group)
    return result


def make(name: str, variant: Variant) -> None:
    """Writes tests/data/NAME."""
    with base_model(tiny_case(name, **variant.shape)) as base, tempfile.TemporaryDirectory() as output:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
        quantizer = AutoRound(
            model,
            AutoTokenizer.from_pretrained(base),
            bits=variant.bits,
            group_size=variant.group_size,
            sym=variant.sym,
            layer_config=dict(variant.layers) or None,
            iters=0,
            disable_opt_rtn=True,
            device_map="cpu",
        )
        quantizer.quantize_and_save(output, format=variant.format)
        saved = next(Path(output).rglob("config.json")).parent
        shutil.rmtree(DATA / name, ignore_errors=True)
        (DATA / name).mkdir(parents=True)
        for file in ("config.json", "generation_config.json", "model.safetensors"):
            shutil.copyfile(saved / file, DATA / name / file)
        complete(DATA / name, base, weights(saved, variant), {"auto-round": version("auto-round")})


def main() -> None:
    """Makes all of them."""
    for name, variant in VARIANTS.items():
        make(name, variant)


if __name__ == "__main__":
    main()
