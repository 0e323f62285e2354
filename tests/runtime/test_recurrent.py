"""Texts of models whose layers carry other states than keys and values: those that transformers' generate gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import truecast
from tests.conformance.cases import BY_NAME
from tests.tiny import stored_model, tiny_checkpoint
from truecast.runtime.decoder import Decoder
from truecast.runtime.generate import GenerationOptions, generate

PROMPTS = [[5, 9, 77, 31], [7] * 9, [100, 3]]
NEW = 24


@pytest.mark.parametrize("name", ["mamba2", "jamba"])
def test_a_batch_of_unequal_prompts_goes_on_as_in_transformers(name: str, tmp_path: Path) -> None:
    source = tiny_checkpoint(BY_NAME[name], tmp_path / "source")
    truecast.export(source, tmp_path / "out", precision="fp32", verify=False)
    length = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    model, asked = stored_model(source).eval(), {"max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
    wanted = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, **asked)[:, length:].tolist()
    decoder = Decoder.open(tmp_path / "out")
    for chunk in (3, 512):  # rows by themselves, in pieces; all in one run
        options = GenerationOptions(NEW, eos_token_ids=(), prefill_chunk=chunk)
        steps = [step.tokens for step in generate(decoder, PROMPTS, options)]
        assert [list(row) for row in zip(*steps, strict=True)] == wanted
