"""truecast's own runtime, the way `truecast run` goes: its cache, its sampling, and the text of every token."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from turns import THREADS, Sampling, serve

from truecast.runtime.generate import GenerationOptions, generate
from truecast.runtime.model import TextModel
from truecast.runtime.sampling import Sampling as TruecastSampling


class Truecast:
    """The opened artifact."""

    def __init__(self, path: Path, vocab: int) -> None:
        """Opens the artifact in the folder `path`, with as many threads as every contender."""
        self.versions = {name: version(name) for name in ("truecast", "onnxruntime", "numpy")}
        self.model = TextModel.open(path, threads=THREADS)

    def generate(self, prompt: list[int], new: int, sampling: Sampling) -> Iterator[int]:
        """See `turns.Contender`."""
        temperature = 0.0 if sampling.greedy else sampling.temperature
        chosen = TruecastSampling(temperature, sampling.top_k, sampling.top_p, sampling.seed)
        options = GenerationOptions(new, chosen, eos_token_ids=())
        text = self.model.codec.stream()
        for step in generate(self.model.decoder, [prompt], options):
            token = step.tokens[0]
            assert token is not None
            text.push(token)
            yield token


if __name__ == "__main__":
    serve(Truecast)
