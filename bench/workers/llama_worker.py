"""llama.cpp through llama-cpp-python."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import llama_cpp
from turns import CAPACITY, THREADS, Sampling, serve


class LlamaCpp:
    """The loaded model and its context."""

    def __init__(self, path: Path, vocab: int) -> None:
        """Loads the GGUF file `path`, with as many threads as every contender."""
        features = llama_cpp.llama_print_system_info().decode()
        self.versions = {"llama-cpp-python": version("llama-cpp-python"), "llama.cpp features": features}
        self.model = llama_cpp.Llama(
            str(path), n_ctx=CAPACITY, n_batch=512, n_threads=THREADS, n_threads_batch=THREADS, verbose=False
        )

    def generate(self, prompt: list[int], new: int, sampling: Sampling) -> Iterator[int]:
        """See `turns.Contender`."""
        self.model.reset()
        self.model.set_seed(sampling.seed)
        temperature = 0.0 if sampling.greedy else sampling.temperature
        tokens = self.model.generate(prompt, sampling.top_k, sampling.top_p, min_p=0.0, temp=temperature)
        yield from islice(tokens, new)


if __name__ == "__main__":
    serve(LlamaCpp)
