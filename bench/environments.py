"""Makes the Python environments of the peers, each its own: their requirements do not go together.

Usage: environments.py FOLDER     makes FOLDER/genai, FOLDER/optimum, FOLDER/llama; what is there is left as it is

llama.cpp is compiled for this processor, which takes about fifteen minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

TORCH = "torch==2.13.0"
"""Installed first and alone, so that pip takes the build without CUDA where an index or folder offers one."""
COMPLETE = ".complete"
"""A file that marks an environment in which everything was installed."""


@dataclass(frozen=True)
class Environment:
    """One peer's environment: what is installed, step by step, and with which variables set."""

    steps: tuple[tuple[str, ...], ...]
    variables: Mapping[str, str] = field(default_factory=dict)


ENVIRONMENTS = {
    "genai": Environment(
        (
            (TORCH,),
            ("onnxruntime-genai==0.18.0", "onnxruntime==1.31.1", "onnx-ir==1.1.0", "transformers==5.23.0", TORCH),
        )
    ),
    "optimum": Environment(((TORCH,), ("optimum-onnx==0.1.0", "onnxruntime==1.31.1", TORCH))),
    "llama": Environment(
        (("--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"),),
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())},
    ),
}


def python_of(folder: Path, name: str) -> Path:
    """The interpreter of the environment `name`; it exists once the environment is complete."""
    return folder / name / "bin" / "python"


def make(folder: Path, name: str) -> None:
    """Makes one environment, or completes it."""
    environment, place = ENVIRONMENTS[name], folder / name
    if (place / COMPLETE).exists():
        return
    venv.create(place, with_pip=True)
    for requirements in environment.steps:
        command = [str(python_of(folder, name)), "-m", "pip", "install", *requirements]
        subprocess.run(command, env={**os.environ, **environment.variables}, check=True)
    (place / COMPLETE).touch()


def main() -> None:
    """Makes every environment; one that cannot be made is reported, and the benchmark will name it as missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in ENVIRONMENTS:
        try:
            make(folder, name)
        except subprocess.CalledProcessError as error:
            print(f"The environment {name} could not be made: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
