"""An exported model in the real onnxruntime-genai, in plain ONNX Runtime, and in PyTorch: the same greedy tokens."""

from pathlib import Path

import pytest
import torch
import transformers

import truecast
from tests.conformance.cases import BY_NAME
from tests.targets.genai_runtime import Genai
from tests.tiny import END_TOKEN_ID, stored_model, tiny_checkpoint
from truecast.runtime.decoder import Decoder
from truecast.runtime.generate import GenerationOptions, generate

PROMPTS = [[5, 17, 40, 101, 7, 33], [9, 80, 3]]
NEW = 24
"""Tokens behind each prompt: past the window of the windowed case."""


@pytest.mark.parametrize("name", ["qwen2", "gemma3_text", "mixtral", "gpt_oss"])
def test_an_exported_model_says_the_same_in_genai_in_onnxruntime_and_in_torch(name: str, tmp_path: Path) -> None:
    source, out = tiny_checkpoint(BY_NAME[name], tmp_path / "source"), tmp_path / "out"
    truecast.export(source, out, target="genai", precision="fp32", verify=False)
    expected = [torch_greedy(stored_model(source), prompt) for prompt in PROMPTS]
    assert not any(END_TOKEN_ID in row for row in expected), "an answer that ends early would compare nothing"
    assert ours(out) == expected
    assert Genai(out).greedy(PROMPTS, NEW) == expected


def torch_greedy(model: transformers.PreTrainedModel, prompt: list[int]) -> list[int]:
    """The author's own greedy continuation of one prompt, without padding."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(NEW):
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def ours(folder: Path) -> list[list[int]]:
    """What truecast's own runtime continues the prompts with."""
    steps = list(generate(Decoder.open(folder), PROMPTS, GenerationOptions(NEW, eos_token_ids=())))
    return [[step.tokens[row] or 0 for step in steps] for row in range(len(PROMPTS))]
