"""Who takes part: how each is exported, in which environment it runs, and which worker runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from environments import python_of
from shapes import SHAPES, Shape

WORKERS = Path(__file__).parent / "workers"
BLOCK_SIZE = 32
"""Weights per scale, in every contender: the only block size of GGUF's Q4_0."""


@dataclass(frozen=True)
class Places:
    """Where the benchmark keeps what it makes, and where the peers' environments are."""

    work: Path
    environments: Path
    shape_name: str

    @property
    def shape(self) -> Shape:
        """The sizes of the model."""
        return SHAPES[self.shape_name]

    @property
    def folder(self) -> Path:
        """Everything made for this shape."""
        return self.work / self.shape_name

    @property
    def checkpoint(self) -> Path:
        """The Hugging Face checkpoint that all weights come from."""
        return self.folder / "checkpoint"

    def python(self, environment: str | None) -> Path:
        """The interpreter of an environment; None is the one that runs the benchmark."""
        return python_of(self.environments, environment) if environment else Path(sys.executable)


@dataclass(frozen=True)
class Contender:
    """One row of the comparison.

    `model` is what the worker loads, relative to the shape's folder. `export` gives the command that makes it from a
    checkpoint; None where the benchmark itself made the file. `environment` None means the benchmark's own.
    """

    title: str
    model: str
    worker: str
    environment: str | None = None
    export: Callable[[Places, Path, Path], list[str]] | None = None

    def model_path(self, places: Places) -> Path:
        """What the worker loads."""
        return places.folder / self.model

    def worker_command(self, places: Places) -> list[str]:
        """The command that starts the worker."""
        script = WORKERS / f"{self.worker}_worker.py"
        return [
            str(places.python(self.environment)),
            str(script),
            str(self.model_path(places)),
            str(places.shape.vocab),
        ]

    def weight_bytes(self, places: Places) -> int:
        """Bytes on disk of the files that hold the graph and the weights."""
        path = self.model_path(places)
        kinds = (".onnx", ".data", ".gguf", ".safetensors")
        files = list(path.iterdir()) if path.is_dir() else [path, path.with_name(f"{path.name}.data")]
        return sum(file.stat().st_size for file in files if file.suffix in kinds and file.exists())


def truecast_export(target: str) -> Callable[[Places, Path, Path], list[str]]:
    """The command of truecast's export for one target."""

    def command(places: Places, source: Path, out: Path) -> list[str]:
        program = str(Path(sys.executable).with_name("truecast"))
        settings = ["--target", target, "--precision", "int4", "--block-size", str(BLOCK_SIZE), "--no-verify"]
        return [program, "export", str(source), str(out), *settings]

    return command


def gguf_export(places: Places, source: Path, out: Path) -> list[str]:
    """The command of truecast's export that keeps the GGUF file's own bits; `source` has the same weights as floats."""
    program = str(Path(sys.executable).with_name("truecast"))
    return [program, "export", str(places.folder / "model.gguf"), str(out), "--precision", "as-is", "--no-verify"]


def genai_export(places: Places, source: Path, out: Path) -> list[str]:
    """The command of onnxruntime-genai's builder."""
    python = [str(places.python("genai")), "-m", "onnxruntime_genai.models.builder"]
    cache = str(places.folder / "genai-cache")
    settings = ["-p", "int4", "-e", "cpu", "-c", cache, "--extra_options", f"block_size={BLOCK_SIZE}"]
    return [*python, "-i", str(source), "-o", str(out), *settings]


CONTENDERS: Mapping[str, Contender] = {
    "truecast": Contender("truecast, default target", "truecast", "truecast", export=truecast_export("onnxruntime")),
    "truecast-genai": Contender(
        "truecast, genai target", "truecast-genai", "truecast", export=truecast_export("genai")
    ),
    "truecast-gguf": Contender("truecast, the Q4_0 file's own bits", "truecast-gguf", "truecast", export=gguf_export),
    "genai": Contender("onnxruntime-genai", "genai", "genai", "genai", genai_export),
    "llama": Contender("llama.cpp, Q4_0", "model.gguf", "llama", "llama"),
    "yardstick": Contender("yardstick, plain ONNX Runtime", "model.onnx", "yardstick"),
    "torch": Contender("transformers, PyTorch float32", "checkpoint", "torch", "genai"),
}
