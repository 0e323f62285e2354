"""Makes tests/data/bitsandbytes-*: tiny models quantized and saved by bitsandbytes, with its own decoded weights.

Run from the repository's root, in an environment with bitsandbytes 0.50.2, transformers 5.23.0 and torch 2.13.0 (CPU):

    python -m scripts.test_checkpoints.bitsandbytes

The oracle is `dequantize_4bit` with a float32 output, and `int8_vectorwise_dequant`, which is what transformers calls.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import bitsandbytes
import torch
import transformers
from scripts.test_checkpoints.oracle_files import base_model, save_checkpoint, tiny_case
from torch import nn

DOUBLE = {"bnb_4bit_use_double_quant": True}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FP4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}

TOLERANCE = (
    "float32 values equal bit for bit; for int8 that holds for the tensor's reader, and its encoding, which multiplies "
    "the scale first, is within 2 ulp"
)

CHECKPOINTS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "bitsandbytes-nf4": ({}, NF4),
    "bitsandbytes-nf4-double": ({}, {**NF4, **DOUBLE, "bnb_4bit_quant_storage": "bfloat16"}),
    # Rows of 112 end in the middle of a block of 64.
    "bitsandbytes-fp4": ({"intermediate_size": 112}, {**FP4, **DOUBLE, "bnb_4bit_quant_storage": "float32"}),
    "bitsandbytes-int8": ({}, {"load_in_8bit": True}),
}
"""Folder → the model's settings, and those of its quantization."""


def decoded(module: nn.Module) -> torch.Tensor:
    """A module's weight [out, in] in float32, by bitsandbytes itself."""
    weight = module.weight.data
    if isinstance(module, bitsandbytes.nn.Linear8bitLt):
        scale = module.weight.SCB if module.state.SCB is None else module.state.SCB
        return bitsandbytes.functional.int8_vectorwise_dequant(weight, scale)
    state = copy.deepcopy(module.weight.quant_state)
    state.dtype = torch.float32
    return bitsandbytes.functional.dequantize_4bit(weight, state)


def main() -> None:
    """Makes all of them."""
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    for name, (shape, quantization) in CHECKPOINTS.items():
        with base_model(tiny_case(name, **shape)) as base:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                base,
                quantization_config=transformers.BitsAndBytesConfig(**quantization),
                device_map="cpu",
                dtype=torch.float16,
            )
            modules = {key: module for key, module in model.named_modules() if isinstance(module, kinds)}
            weights = {f"{key}.weight": decoded(module) for key, module in modules.items()}
            save_checkpoint(name, base, model, weights, {"bitsandbytes": bitsandbytes.__version__}, TOLERANCE)


if __name__ == "__main__":
    main()
