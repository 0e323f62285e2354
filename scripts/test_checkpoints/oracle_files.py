"""What the scripts share: the tiny float model to start from, and oracle.json with the hashes of decoded weights."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tests.conformance.shapes import SHAPE
from tests.tiny import Case, tiny_checkpoint

DATA = Path(__file__).parents[2] / "tests" / "data"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
EXACT = "float32 values equal bit for bit"


def tiny_case(name: str, stored: str = "float16", **settings: Any) -> Case:
    """A Llama with hidden size 64, two layers and tied embeddings; `settings` alter it."""
    shape = {**SHAPE, "intermediate_size": 128, "tie_word_embeddings": True, **settings}
    return Case(name, "LlamaConfig", shape, stored=stored)


@contextmanager
def base_model(case: Case) -> Iterator[Path]:
    """The folder of the case's float checkpoint, while the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        yield tiny_checkpoint(case, Path(folder))


def save_checkpoint(
    name: str,
    base: Path,
    model: transformers.PreTrainedModel,
    weights: Mapping[str, torch.Tensor],
    versions: Mapping[str, str],
    tolerance: str = EXACT,
) -> Path:
    """Writes tests/data/NAME as transformers saves the model, with the tokenizer and the oracle."""
    folder = DATA / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    return complete(folder, base, weights, versions, tolerance)


def complete(
    folder: Path, base: Path, weights: Mapping[str, torch.Tensor], versions: Mapping[str, str], tolerance: str = EXACT
) -> Path:
    """Adds the tokenizer's files and oracle.json to a saved checkpoint: what the library decodes each weight to."""
    for file in TOKENIZER_FILES:
        shutil.copyfile(base / file, folder / file)
    oracle = {
        "versions": {**versions, "torch": torch.__version__, "transformers": transformers.__version__},
        "tolerance": tolerance,
        "weights": {key: float32_hash(weight) for key, weight in sorted(weights.items())},
    }
    (folder / "oracle.json").write_text(json.dumps(oracle, indent=1) + "\n", encoding="utf-8")
    return folder


def float32_hash(weight: torch.Tensor) -> str:
    """SHA-256 of the float32 little-endian bytes of a weight [out, in]."""
    values = weight.detach().to(torch.float32).contiguous().numpy().astype("<f4")
    if not np.isfinite(values).all():
        raise ValueError("the decoded weight is not finite")
    return hashlib.sha256(values.tobytes()).hexdigest()
