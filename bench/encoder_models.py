"""The encoders that are compared, and every contender's graph of them.

Each function makes one graph from a Hugging Face folder. Peers that need an environment of their own are called in it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from contenders import WORKERS
from environments import python_of

MODERNBERT = {
    "vocab_size": 50368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
}
"""The shape of ModernBERT-base with 8 of its 22 layers; weights are random."""
REFERENCE = "torch"


@dataclass(frozen=True)
class Maker:
    """One contender: its title, and how its graph is made; `command` None is the author's module in PyTorch.

    `command(source, out, environments)` writes `out`/model.onnx.
    """

    title: str
    command: Callable[[Path, Path, Path], list[str]] | None


def truecast(precision: str, *options: str) -> Callable[[Path, Path, Path], list[str]]:
    """truecast's own export, unproven: the proof is measured elsewhere."""

    def command(source: Path, out: Path, environments: Path) -> list[str]:
        program = str(Path(sys.executable).with_name("truecast"))
        named = ["export", str(source), str(out), "--task", "feature-extraction", "--precision", precision]
        return [program, *named, "--no-verify", *options]

    return command


def peer(kind: str, environment: str | None = None) -> Callable[[Path, Path, Path], list[str]]:
    """An exporter of `workers/encoder_exporter.py`."""

    def command(source: Path, out: Path, environments: Path) -> list[str]:
        python = str(python_of(environments, environment)) if environment else sys.executable
        return [python, str(WORKERS / "encoder_exporter.py"), kind, str(source), str(out)]

    return command


MAKERS: Mapping[str, Maker] = {
    REFERENCE: Maker("PyTorch eager, float32", None),
    "truecast": Maker("truecast fp32", truecast("fp32")),
    "dynamo": Maker("torch.onnx, dynamo", peer("dynamo")),
    "torchscript": Maker("torch.onnx, TorchScript", peer("torchscript")),
    "transformers": Maker("transformers' exporter, fusions for CPU", peer("transformers")),
    "optimum": Maker("optimum-onnx", peer("optimum", "optimum")),
    "truecast-int8": Maker("truecast int8 (blocks)", truecast("int8")),
    "truecast-int8-dynamic": Maker("truecast int8-dynamic", truecast("int8-dynamic")),
    "quantize-dynamic": Maker("quantize_dynamic of the dynamo graph", peer("quantize_dynamic")),
}


def make_modernbert(folder: Path) -> None:
    """Writes a random checkpoint of the shape, the same every time."""
    import torch
    from transformers import ModernBertConfig, ModernBertModel

    torch.manual_seed(0)
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "cls_token_id", "eos_token_id", "sep_token_id"), 0)
    ModernBertModel(ModernBertConfig(**MODERNBERT, **special)).save_pretrained(folder)


def make(name: str, source: Path, out: Path, environments: Path, log: Path) -> str | None:
    """Makes one contender's graph unless it is there; the reason where that fails."""
    command = MAKERS[name].command
    if command is None or (out / "model.onnx").exists():
        return None
    line = command(source, out, environments)
    if not Path(line[0]).exists():
        return f"{line[0]} does not exist: make the environments with bench/environments.py"
    with log.open("w") as file:
        done = subprocess.run(line, stdout=file, stderr=subprocess.STDOUT, check=False)
    lines = [text for text in log.read_text(errors="replace").splitlines() if text.strip()]
    return None if done.returncode == 0 else (lines[-1] if lines else f"status {done.returncode}")
