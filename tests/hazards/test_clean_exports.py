"""No false alarm: exports of small modules by torch, and truecast's own artifacts, have no finding that is theirs.

Every precision, opset and exporter that a careful user would choose; twenty files with what `test_artifacts` adds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

import truecast
from tests.conformance.cases import BY_NAME
from tests.tiny import tiny_checkpoint
from truecast.diagnosis import diagnose

Axes = dict[str, dict[int, str]]
TOKENS: Axes = {"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}}
ROWS: Axes = {"x": {0: "batch"}}


class Classifier(nn.Module):
    """Two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(32, 64), nn.Linear(64, 8), nn.LayerNorm(64)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.down(self.drop(nn.functional.gelu(self.norm(self.up(x))))), -1)


class Block(nn.Module):
    """Attention and a feed-forward part, before which the rows are normed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inputs, self.result = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 96), nn.SiLU(), nn.Linear(96, width))

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.inputs(self.norm(x)).view(batch, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.result(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.feed(x)


class Encoder(nn.Module):
    """A small BERT with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(300, 64), nn.Embedding(128, 64)
        self.layers, self.head = nn.ModuleList([Block(64), Block(64)]), nn.Linear(64, 5)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1], device=input_ids.device))[None]
        bias = torch.where(attention_mask[:, None, None, :].bool(), 0.0, -1e4)
        for layer in self.layers:
            x = layer(x, bias)
        return self.head(x[:, 0])


class Images(nn.Module):
    """Convolutions, pooling, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 4),
        )

    def forward(self, x: torch.Tensor) -> Any:
        return self.parts(x)


class Recurrent(nn.Module):
    """An LSTM over rows."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.head = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.steps(x)[0][:, -1])


def _tokens() -> tuple[torch.Tensor, ...]:
    return torch.randint(0, 300, (3, 17)), torch.ones(3, 17, dtype=torch.int64)


@dataclass(frozen=True)
class Export:
    """One export by torch."""

    kind: str
    opset: int
    dynamo: bool = True

    def __str__(self) -> str:
        return f"{self.kind}-{'dynamo' if self.dynamo else 'torchscript'}-{self.opset}"


class First(nn.Module):
    """An author's model of transformers, and the first of its outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.model(x, **({} if attention_mask is None else {"attention_mask": attention_mask}))[0]


SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


def bert() -> nn.Module:
    return First(BertModel(BertConfig(**SIZES, vocab_size=300, max_position_embeddings=64)))


def vit() -> nn.Module:
    return First(ViTModel(ViTConfig(**SIZES, image_size=32, patch_size=8)))


KINDS: dict[str, tuple[Callable[[], nn.Module], Any, Axes]] = {
    "bert": (bert, _tokens, {"x": TOKENS["input_ids"], "attention_mask": TOKENS["attention_mask"]}),
    "vit": (vit, lambda: (torch.randn(3, 3, 32, 32),), ROWS),
    "classifier": (Classifier, lambda: (torch.randn(3, 32),), ROWS),
    "encoder": (Encoder, _tokens, TOKENS),
    "images": (Images, lambda: (torch.randn(3, 3, 32, 32),), ROWS),
    "recurrent": (Recurrent, lambda: (torch.randn(3, 9, 16),), {"x": {0: "batch", 1: "length"}}),
}
EXPORTS = (
    *(Export(kind, opset) for kind in ("classifier", "encoder", "images") for opset in (18, 20)),
    *(Export(kind, opset) for kind, opset in (("classifier", 23), ("images", 23), ("encoder", 22))),
    *(Export(kind, opset) for kind in ("bert", "vit") for opset in (18, 21)),
    *(Export(kind, 21) for kind in ("classifier", "images")),
    Export("recurrent", 20),
    *(Export(kind, 17, dynamo=False) for kind in KINDS),
)
FUSED_AT_LOAD = {"TC111"}
"""Information, and true: what the runtime makes of a residual layer whose shapes it knows. The file is not at fault."""
OF_QUANTIZERS = {"TC309"}
"""Information, and true: quantize_dynamic stops at each Linear of the dynamo exporter, which describes its weights."""
ARTIFACTS = (
    ("llama_tied", "fp32"),
    ("llama_tied", "int4"),
    ("qwen2", "int8"),
    ("mistral", "int4"),
    ("llama_biases", "fp32"),
    ("llama", "int8"),
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def exported(export: Export, file: Path) -> Path:
    """Writes the export; every axis that can be free is."""
    kind, inputs, axes = KINDS[export.kind]
    torch.manual_seed(0)
    module, names = kind().eval(), list(axes)
    shapes = {} if export.dynamo else {"dynamic_axes": axes}
    if export.dynamo:
        shapes = {"dynamic_shapes": tuple(axes.values()), "external_data": False, "verbose": False}
    torch.onnx.export(
        module, inputs(), file, dynamo=export.dynamo, input_names=names, opset_version=export.opset, **shapes
    )
    return file


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Export], Path]:
    """Each export, made once."""

    @cache
    def made(export: Export) -> Path:
        return exported(export, tmp_path_factory.mktemp(str(export)) / "model.onnx")

    return made


@pytest.mark.parametrize("export", EXPORTS, ids=str)
def test_exports_by_torch_have_no_finding(export: Export, exports: Callable[[Export], Path]) -> None:
    file = exports(export)
    assert set(diagnose(file).codes) <= OF_QUANTIZERS
    ran = diagnose(file, run=True, seconds=None)
    assert set(ran.codes) <= FUSED_AT_LOAD | OF_QUANTIZERS
    assert ran.notes == ()


@pytest.mark.parametrize("export", [Export("encoder", 20), Export("images", 20), Export("classifier", 20)], ids=str)
def test_nor_on_cuda(export: Export, exports: Callable[[Export], Path]) -> None:
    assert set(diagnose(exports(export), "cuda").codes) <= OF_QUANTIZERS


def test_the_portable_target_copies_its_cache_and_nothing_else_is_found(tmp_path: Path) -> None:
    """Its products round their activations as the manifest's session key says: the optimizer is not to blame."""
    checkpoint = tiny_checkpoint(BY_NAME["qwen3"], tmp_path / "checkpoint")
    made = truecast.export(checkpoint, tmp_path / "out", precision="int4", target="portable", verify=False)
    assert diagnose(made.folder, run=True, seconds=None).codes == ("TC601",)


@pytest.mark.parametrize(("case", "precision"), ARTIFACTS)
def test_artifacts_have_no_finding(case: str, precision: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(BY_NAME[case], tmp_path / "checkpoint")
    folder = truecast.export(checkpoint, tmp_path / "out", precision=precision, verify=False).folder
    told = OF_QUANTIZERS if precision == "fp32" else set()
    assert set(diagnose(folder).codes) <= told
    ran = diagnose(folder, run=True, seconds=None)
    assert (set(ran.codes) <= told, ran.notes) == (True, ())
