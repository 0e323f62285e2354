"""transformers on PyTorch in float32: the model as its author wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from turns import THREADS, Sampling, serve


class Transformers:
    """The loaded model."""

    def __init__(self, path: Path, vocab: int) -> None:
        """Loads the checkpoint in the folder `path`, with as many threads as every contender."""
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        torch.set_num_threads(THREADS)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    @torch.inference_mode()
    def generate(self, prompt: list[int], new: int, sampling: Sampling) -> Iterator[int]:
        """See `turns.Contender`."""
        random = torch.Generator().manual_seed(sampling.seed)
        ids, past = torch.tensor([prompt]), None
        for _ in range(new):
            out = self.model(ids, past_key_values=past, use_cache=True, logits_to_keep=1)
            past = out.past_key_values
            ids = chosen(out.logits[0, -1], sampling, random).view(1, 1)
            yield int(ids)


def chosen(logits: torch.Tensor, sampling: Sampling, random: torch.Generator) -> torch.Tensor:
    """The next token, a scalar, from the float32 `logits` [vocabulary]."""
    if sampling.greedy:
        return logits.argmax()
    values, indices = torch.topk(logits / sampling.temperature, sampling.top_k)
    weights = values.softmax(0)
    kept = weights.cumsum(0) - weights < sampling.top_p
    return indices[torch.multinomial(weights * kept, 1, generator=random)]


if __name__ == "__main__":
    serve(Transformers)
