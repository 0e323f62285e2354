"""Makes tests/data/gpt-oss-mxfp4: a tiny gpt-oss as OpenAI publishes them, its experts in MXFP4, the rest in bfloat16.

Run from the repository's root, in an environment with transformers 5.23.0 and torch 2.13.0 (CPU):

    python -m scripts.test_checkpoints.gpt_oss

No library makes MXFP4 on a CPU, so the codes are made here: for each 32 weights the least power of two that lets the
largest 4-bit float, 6, reach the largest weight, and the nearest 4-bit float for each (OCP Microscaling Formats 1.0,
E2M1 and E8M0). The layout is that of openai/gpt-oss-20b: `NAME_blocks` [experts, out, in / 32, 16] with the even column
in the low bits, `NAME_scales` [experts, out, in / 32]. What the codes mean is not decided here: transformers'
`convert_moe_packed_tensors` must give back the values that were meant, or nothing is written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace

import torch
from safetensors.torch import load_file, save_file
from scripts.test_checkpoints.oracle_files import DATA, TOKENIZER_FILES, base_model
from tests.conformance.cases import BY_NAME
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

NAME = "gpt-oss-mxfp4"
GROUP, BIAS, LARGEST = 32, 127, 6
FLOAT4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
QUANTIZATION = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        *("model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"),
    ],
}


def packed(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks and scales of experts [experts, in, out]."""
    groups = weight.transpose(1, 2).unflatten(2, (-1, GROUP))
    exponent = torch.ceil(torch.log2(groups.abs().amax(-1) / LARGEST))
    steps = groups / 2 ** exponent[..., None]
    codes = (steps[..., None] - FLOAT4).abs().argmin(-1).to(torch.uint8)
    blocks, scales = codes[..., 0::2] | codes[..., 1::2] << 4, (exponent + BIAS).to(torch.uint8)
    meant = (FLOAT4[codes.long()] * 2 ** exponent[..., None]).flatten(2).transpose(1, 2)
    if not torch.equal(convert_moe_packed_tensors(blocks, scales).float(), meant):
        raise ValueError("transformers decodes the codes to something else than was meant")
    return blocks, scales


def tensors_of(floats: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the file: experts as codes, everything else in bfloat16."""
    result: dict[str, torch.Tensor] = {}
    for name, tensor in floats.items():
        if name.endswith((".gate_up_proj", ".down_proj")):
            result[f"{name}_blocks"], result[f"{name}_scales"] = packed(tensor)
        else:
            result[name] = tensor.to(torch.bfloat16)
    return result


def main() -> None:
    """Writes the folder."""
    case = BY_NAME["gpt_oss"]
    case = replace(case, settings={**case.settings, "intermediate_size": 64})
    folder = DATA / NAME
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with base_model(case) as base:
        save_file(tensors_of(load_file(base / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
        config = json.loads((base / "config.json").read_text()) | {"quantization_config": QUANTIZATION}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        for file in TOKENIZER_FILES:
            shutil.copyfile(base / file, folder / file)


if __name__ == "__main__":
    main()
