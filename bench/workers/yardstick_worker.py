"""The yardstick graph in plain ONNX Runtime; takes the likeliest token whatever the sampling asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
from turns import CAPACITY, THREADS, Sampling, serve

sys.path.append(str(Path(__file__).parents[1]))
from shapes import SHAPES
from yardstick import Session


class Yardstick:
    """The session and its cache."""

    def __init__(self, path: Path, vocab: int) -> None:
        """Loads the graph; its shape is the one named by the folder it lies in."""
        self.versions = {"onnxruntime": onnxruntime.__version__}
        self.session = Session(path, SHAPES[path.parent.name], THREADS, CAPACITY)

    def generate(self, prompt: list[int], new: int, sampling: Sampling) -> Iterator[int]:
        """See `turns.Contender`."""
        token = self.session.step(prompt, 0)
        yield token
        for past in range(len(prompt), len(prompt) + new - 1):
            token = self.session.step([token], past)
            yield token


if __name__ == "__main__":
    serve(Yardstick)
