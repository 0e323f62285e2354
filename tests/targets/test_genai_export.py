"""An exported model says in the real onnxruntime-genai, in plain ONNX Runtime and in PyTorch the same greedy tokens."""

from pathlib import Path

import numpy as np
import pytest

from tests.conformance.cases import BY_NAME
from tests.targets.genai_runtime import Genai
from tests.tiny import stored_model, tiny_checkpoint
from truecast.exporting import Request, export
from truecast.runtime.decoder import Decoder
from truecast.runtime.generate import GenerationOptions, generate

NEW = 24
BYTES = 256
"""Token ids below this are plain bytes in the tiny checkpoints; the end token, which pads, is none of them."""
PROMPTS = [np.random.default_rng(seed).integers(0, BYTES, n).tolist() for seed, n in enumerate((5, 23, 1, 40))]


def in_torch(checkpoint: Path) -> list[list[int]]:
    import torch

    model = stored_model(checkpoint).float()
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        text = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        found.append(text[0, len(prompt) :].tolist())
    return found


def in_onnxruntime(folder: Path) -> list[list[int]]:
    options = GenerationOptions(NEW, eos_token_ids=())
    steps = list(generate(Decoder.open(folder, threads=1), PROMPTS, options))
    return [[step.tokens[row] or 0 for step in steps] for row in range(len(PROMPTS))]


@pytest.mark.parametrize("name", ["qwen2", "gemma3_text", "gpt2"])
def test_three_runtimes_say_the_same(tmp_path: Path, name: str) -> None:
    checkpoint = tiny_checkpoint(BY_NAME[name], tmp_path)
    folder = export(checkpoint, tmp_path / "out", Request(target="genai"), verify=False)
    expected = in_torch(checkpoint)
    assert in_onnxruntime(folder) == expected
    genai = Genai(folder)
    assert [genai.greedy([prompt], NEW)[0] for prompt in PROMPTS] == expected
    assert genai.greedy(PROMPTS, NEW) == expected
