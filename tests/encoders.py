"""Folders of tiny encoders, and modules of every common layer, for tests that look at them from outside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.conformance.encoders import BY_NAME
from tests.tiny import tiny_checkpoint

KIND = "sentence_transformers.models"
LABELS = {0: "praise", 1: "question", 2: "complaint"}


def classifier(folder: Path) -> Path:
    """A text classifier with three labels."""
    made = tiny_checkpoint(BY_NAME["bert_sequence"], folder)
    config = json.loads((made / "config.json").read_text())
    config |= {"id2label": {str(index): label for index, label in LABELS.items()}}
    config |= {"label2id": {label: index for index, label in LABELS.items()}}
    (made / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return made


def steps_behind(folder: Path, steps: Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, Tensor]]]) -> Path:
    """Puts steps behind a folder's encoder: by the folder of each its class, its settings and its weights."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{KIND}.Transformer"}]
    for index, (name, (kind, settings, weights)) in enumerate(steps.items()):
        modules.append({"idx": index + 1, "name": str(index + 1), "path": name, "type": kind})
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(settings))
        if weights:
            save_file(dict(weights), folder / name / "model.safetensors")
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def sentences(folder: Path, mode: str = "mean_tokens", normalize: bool = True) -> Path:
    """A folder as sentence-transformers writes it: an encoder, its pooling, and a last step that makes lengths 1."""
    made = tiny_checkpoint(BY_NAME["bert"], folder)
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{KIND}.Transformer"}]
    modules += [{"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{KIND}.Pooling"}]
    if normalize:
        modules += [{"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{KIND}.Normalize"}]
    pooling: dict[str, Any] = {"word_embedding_dimension": 64}
    pooling |= {f"pooling_mode_{name}": name == mode for name in ("cls_token", "mean_tokens", "max_tokens")}
    files: Mapping[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": False},
    }
    for name, content in files.items():
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_text(json.dumps(content, indent=2) + "\n")
    return made


class Layers(nn.Module):
    """Convolution, batch norm, dropout and two named outputs: x [batch, length, 8], scale [batch, 12]."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(11)
            self.linear = nn.Linear(8, 16)
            self.conv = nn.Conv1d(16, 12, 3, padding=1)
            self.norm = nn.BatchNorm1d(12)
            self.dropout = nn.Dropout(0.5)
            assert self.norm.running_mean is not None and self.norm.running_var is not None
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 1.5)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        states = self.norm(self.conv(torch.relu(self.linear(x)).transpose(1, 2))).transpose(1, 2)
        states = self.dropout(states)
        return {"states": states, "score": states.mean(1) * scale}


def layers_examples() -> tuple[Tensor, Tensor]:
    """Inputs of `Layers`."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(2, 7, 8, generator=generator), torch.randn(2, 12, generator=generator)


LAYERS_DYNAMIC = {"x": {0: "batch_size", 1: "length=1..40"}, "scale": {0: "batch_size"}}


class Recurrent(nn.Module):
    """An LSTM over x [batch, length, 8]."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(12)
            self.lstm = nn.LSTM(8, 6, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        states, (hidden, cell) = self.lstm(x)
        return states, (hidden, cell)


class Blocks(nn.Module):
    """Products, a layer norm, a batch norm and a residual: x [batch, 8]."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(13)
            self.first, self.second, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 5)
            self.norm, self.statistics = nn.LayerNorm(16), nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.statistics(self.norm(self.first(x)))
        result: Tensor = self.head(y + nn.functional.gelu(self.second(y)))
        return result


class Massive(nn.Module):
    """A residual stream in which blocks add `size` to one channel, and later ones take it back: x [batch, 8]."""

    def __init__(self, size: float) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 5)
            self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(4))
            self.up = nn.ModuleList(nn.Linear(16, 32) for _ in range(4))
            self.down = nn.ModuleList(nn.Linear(32, 16) for _ in range(4))
        with torch.no_grad():
            for layer, sign in zip(self.down, (1, 1, -1, -1), strict=True):
                layer.bias[3] = sign * size  # type: ignore[union-attr, operator, index]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(nn.functional.gelu(up(norm(x))))
        result: Tensor = self.head(x)
        return result
