"""The real onnxruntime-genai, for tests; they are skipped where it is not installed."""

import json
from pathlib import Path

import numpy as np
import pytest

MISSING = "onnxruntime-genai is not installed: pip install 'truecast[genai]'"


class Genai:
    """A folder opened with the real onnxruntime-genai."""

    def __init__(self, folder: Path) -> None:
        self.library = pytest.importorskip("onnxruntime_genai", reason=MISSING)
        self.model = self.library.Model(str(folder))
        self.padding: int = json.loads((folder / "genai_config.json").read_text())["model"]["pad_token_id"]

    def greedy(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        """`new` tokens behind each prompt; shorter prompts are padded on the right."""
        longest = max(len(prompt) for prompt in prompts)
        padded = np.array([prompt + [self.padding] * (longest - len(prompt)) for prompt in prompts], np.int32)
        parameters = self.library.GeneratorParams(self.model)
        parameters.set_search_options(max_length=longest + new, batch_size=len(prompts), do_sample=False)
        generator = self.library.Generator(self.model, parameters)
        generator.append_tokens(padded)
        steps = []
        while not generator.is_done():
            generator.generate_next_token()
            steps.append([int(token) for token in generator.get_next_tokens()])
        return [list(row) for row in zip(*steps, strict=True)]
