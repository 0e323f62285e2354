"""Makes tests/data/quark-*: tiny models quantized and exported by AMD Quark, with its own decoded weights.

Run from the repository's root, in an environment with torch 2.13.0 (CPU), transformers 5.23.0, amd-quark 0.13 (with
--no-deps, because it pins an older onnx), scipy, zstandard, onnx and onnxslim:

    python -m scripts.test_checkpoints.quark

The oracle is Quark's own real quantizer, which unpacks and decodes, with scales in float32.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from importlib.metadata import version
from typing import Any

import torch
import transformers
from quark.torch import ModelQuantizer, export_safetensors
from quark.torch.export.nn.modules.realquantizer import get_real_quantizer
from quark.torch.quantization.config import config as quark
from safetensors.torch import load_file
from scripts.test_checkpoints.oracle_files import DATA, base_model, complete, tiny_case

STATIC = {"is_dynamic": False}
GROUP = {**STATIC, "ch_axis": -1, "group_size": 32}

CHECKPOINTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "quark-int4": (
        "reorder",
        {
            "*": quark.Int4PerGroupSpec(symmetric=True, **GROUP),
            "*k_proj": quark.Int8PerGroupSpec(symmetric=True, **GROUP),
            "*v_proj": quark.FP8E4M3PerTensorSpec(observer_method="min_max", **STATIC),
            "*gate_proj": quark.Int8PerChannelSpec(symmetric=True, ch_axis=0, **STATIC),
        },
    ),
    "quark-uint4": (
        "order",
        {
            "*": quark.Uint4PerGroupSpec(symmetric=False, **GROUP),
            "*k_proj": quark.Uint8PerGroupSpec(symmetric=False, **GROUP),
            "*gate_proj": quark.Uint8PerChannelSpec(symmetric=False, ch_axis=0, **STATIC),
        },
    ),
    "quark-int4-asymmetric": ("reorder", {"*": quark.Int4PerGroupSpec(symmetric=False, **GROUP)}),
    "quark-floats": (
        "reorder",
        {
            "*": quark.OCP_MXFP4Spec(ch_axis=-1, **STATIC),
            "*v_proj": quark.OCP_MXFP6E2M3Spec(ch_axis=-1, **STATIC),
            "*up_proj": quark.FP8E4M3PerChannelSpec(ch_axis=0, **STATIC),
        },
    ),
}
"""Folder → the method of packing, and what each pattern of modules is quantized to; the last pattern that fits wins."""


def decoded(tensors: Mapping[str, torch.Tensor], module: str, spec: Any, reorder: bool) -> torch.Tensor:
    """A module's weight [out, in] in float32 from its exported tensors, by Quark itself."""
    quantizer = get_real_quantizer(
        spec, None, reorder=reorder, real_quantized=True, float_dtype=torch.float32, device=torch.device("cpu")
    )
    scale = tensors[f"{module}.weight_scale"]
    quantizer.scale = scale if scale.dtype == torch.uint8 else scale.float()
    quantizer.zero_point = tensors.get(f"{module}.weight_zero_point")
    return quantizer(tensors[f"{module}.weight"])


def main() -> None:
    """Makes all of them."""
    for name, (method, specs) in CHECKPOINTS.items():
        folder = DATA / name
        shutil.rmtree(folder, ignore_errors=True)
        patterns = {pattern: spec.to_quantization_spec() for pattern, spec in specs.items()}
        layers = {pattern: quark.QLayerConfig(weight=spec) for pattern, spec in patterns.items()}
        with base_model(tiny_case(name, stored="bfloat16")) as base:
            model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
            quantizer = ModelQuantizer(
                quark.QConfig(global_quant_config=layers.pop("*"), layer_quant_config=layers, exclude=["lm_head"])
            )
            model = quantizer.freeze(quantizer.quantize_model(model, [torch.arange(16)[None]]))
            export_safetensors(model, folder, pack_method=method)
            tensors = load_file(folder / "model.safetensors")
            modules = [key.removesuffix(".weight_scale") for key in tensors if key.endswith(".weight_scale")]
            weights = {}
            for module in modules:
                spec = next(spec for pattern, spec in reversed(patterns.items()) if fnmatch(module, pattern))
                weights[f"{module}.weight"] = decoded(tensors, module, spec, method == "reorder")
            complete(folder, base, weights, {"amd-quark": version("amd-quark")})


if __name__ == "__main__":
    main()
