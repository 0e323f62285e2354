"""onnxruntime-genai's runtime with the graph of its own builder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
from turns import CAPACITY, THREADS, Sampling, serve


class Genai:
    """The loaded model; a generator, with its cache, is made for each turn, as its API asks (some milliseconds)."""

    def __init__(self, path: Path, vocab: int) -> None:
        """Loads the folder `path`, with as many threads as every contender."""
        self.versions = {name: version(name) for name in ("onnxruntime-genai", "onnxruntime")}
        config = og.Config(str(path))
        options = {"intra_op_num_threads": THREADS, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model = og.Model(config)

    def generate(self, prompt: list[int], new: int, sampling: Sampling) -> Iterator[int]:
        """See `turns.Contender`."""
        params = og.GeneratorParams(self.model)
        params.set_search_options(max_length=CAPACITY, do_sample=not sampling.greedy)
        if not sampling.greedy:
            filters = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
            params.set_search_options(random_seed=sampling.seed, **filters)
        generator = og.Generator(self.model, params)
        generator.append_tokens(np.array(prompt, np.int32))
        for _ in range(new):
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])


if __name__ == "__main__":
    serve(Genai)
