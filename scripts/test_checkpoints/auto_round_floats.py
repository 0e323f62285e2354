"""Makes tests/data/auto-round-*: tiny models that AutoRound stores as compressed-tensors, or as float8 in blocks.

Run from the repository's root, in an environment with auto-round 0.16.1, compressed-tensors 0.20.0, transformers 5.23.0
and torch 2.13.0 (CPU):

    python -m scripts.test_checkpoints.auto_round_floats

The oracle is compressed-tensors' own `decompress` on scales in float32, and for blocks its `FP8BlockDequantizer`.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import auto_round
import compressed_tensors
import torch
import transformers
from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import FP8BlockDequantizer
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from scripts.test_checkpoints.compressed_tensors import decoded
from scripts.test_checkpoints.oracle_files import DATA, base_model, complete, tiny_case

FORMATS = {
    "int": "pack-quantized",
    "INT8": "int-quantized",
    "NVFP4": "nvfp4-pack-quantized",
    "MXFP4": "mxfp4-pack-quantized",
    "MXFP8": "mxfp8-quantized",
    "FP8_STATIC": "float-quantized",
}
"""AutoRound's scheme → the format of compressed-tensors that its files are in."""

BLOCKS = {"hidden_size": 160, "intermediate_size": 160, "num_hidden_layers": 1}

CHECKPOINTS: Mapping[str, tuple[Mapping[str, Any], str, Mapping[str, Any], str]] = {
    "auto-round-ct-int4": ({}, "int", {"bits": 4, "group_size": 32, "sym": True}, "llm_compressor"),
    "auto-round-ct-int4-asymmetric": ({}, "int", {"bits": 4, "group_size": 32, "sym": False}, "llm_compressor"),
    "auto-round-ct-int8": ({}, "INT8", {"scheme": "INT8"}, "llm_compressor"),
    "auto-round-ct-nvfp4": ({}, "NVFP4", {"scheme": "NVFP4"}, "llm_compressor"),
    "auto-round-ct-mxfp4": ({}, "MXFP4", {"scheme": "MXFP4"}, "llm_compressor"),
    "auto-round-ct-mxfp8": ({}, "MXFP8", {"scheme": "MXFP8"}, "llm_compressor"),
    "auto-round-ct-fp8": ({}, "FP8_STATIC", {"scheme": "FP8_STATIC"}, "llm_compressor"),
    "auto-round-fp8-blocks": (BLOCKS, "FP8_BLOCK", {"scheme": "FP8_BLOCK"}, "auto_round"),
}
"""Folder → the model's settings, the scheme, its arguments, and the format to save in."""


def quantize(base: Path, folder: Path, arguments: Mapping[str, Any], format: str) -> None:
    """Rounds the model at `base` to nearest and saves it into `folder`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randint(0, 256, (1, 32), generator=generator) for _ in range(4)]
    rounding = auto_round.AutoRound(
        model,
        tokenizer,
        iters=0,
        disable_opt_rtn=True,
        device_map="cpu",
        dataset=samples,
        nsamples=len(samples),
        seqlen=32,
        **arguments,
    )
    with tempfile.TemporaryDirectory() as saved:
        rounding.quantize_and_save(saved, format=format)
        (config,) = Path(saved).rglob("config.json")
        folder.mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(config.parent / name, folder / name)


def block_weights(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What float8 in blocks stands for, by compressed-tensors' converter in float32."""
    converter = FP8BlockDequantizer(targets=["re:.*"], weight_block_size=(128, 128), dtype=torch.float32)
    quantized = {name.removesuffix("_scale_inv") for name in tensors if name.endswith("_scale_inv")}
    return {
        name: converter._create_dequantized_weight(tensors[name], tensors[f"{name}_scale_inv"]) for name in quantized
    }


def compressed_weights(folder: Path, tensors: Mapping[str, torch.Tensor], format: str) -> dict[str, torch.Tensor]:
    """What the compressed tensors stand for, by compressed-tensors itself."""
    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    (scheme,) = QuantizationConfig.model_validate(stated).config_groups.values()
    scheme = copy.deepcopy(scheme)
    scheme.format = format
    modules = sorted({name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")})
    weights = {}
    for module in modules:
        state = {name.removeprefix(f"{module}."): t for name, t in tensors.items() if name.startswith(f"{module}.")}
        weights[f"{module}.weight"] = decoded(state, scheme)
    return weights


def main() -> None:
    """Makes all of them."""
    versions = {"auto-round": auto_round.__version__, "compressed-tensors": compressed_tensors.__version__}
    for name, (shape, scheme, arguments, format) in CHECKPOINTS.items():
        folder = DATA / name
        shutil.rmtree(folder, ignore_errors=True)
        with base_model(tiny_case(name, stored="bfloat16", **shape)) as base:
            quantize(base, folder, arguments, format)
            tensors = load_file(folder / "model.safetensors")
            blocks = scheme == "FP8_BLOCK"
            weights = block_weights(tensors) if blocks else compressed_weights(folder, tensors, FORMATS[scheme])
            complete(folder, base, weights, versions)


if __name__ == "__main__":
    main()
