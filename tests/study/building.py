"""What the tests of studies start from: a tiny classifier on disk, rows, plans, and finished rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.tiny import write_tokenizer
from truecast.study.plan import Plan, read_plan
from truecast.study.results import Cell, Footprint, Head, Likeness, Row, State
from truecast.study.variants import Variant

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in.py")))
VOCABULARY = 257

PLAN = """
[model]
source = "model"

[data]
file = "rows.jsonl"
text = "text"

[data.labels]
logits = "label"

[measure]
batch = [1, 3]
length = [8]
threads = 1
warmup = 0
repeats = 3

[[variants]]
precision = ["fp32", "int8"]
"""


def folder_with_plan(folder: Path, plan: str = PLAN, rows: list[Mapping[str, Any]] | None = None) -> Path:
    """A plan with its rows and an empty model folder; returns the plan's path."""
    (folder / "model").mkdir(exist_ok=True)
    given = rows if rows is not None else [{"text": f"row {n}", "label": n % 2} for n in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    (folder / "plan.toml").write_text(plan)
    return folder / "plan.toml"


def plan_of(folder: Path, plan: str = PLAN) -> Plan:
    """The plan, read."""
    return read_plan(folder_with_plan(folder, plan))


def tiny_classifier(folder: Path) -> Path:
    """A BERT of two layers with three classes and random weights, and a byte-level tokenizer."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        num_labels=3,
        pad_token_id=256,
        initializer_range=0.3,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def row(
    name: str,
    milliseconds: float | Mapping[tuple[int, int, int], float] = 10.0,
    accuracy: float | None = 0.9,
    cosine: float | None = 1.0,
    memory: int = 100 * 10**6,
    failed: str = "",
    **more: Any,
) -> Row:
    """A finished row; names that start with torch are PyTorch's."""
    kind = "torch" if name.startswith("torch") else "onnx"
    variant = Variant(name=name, kind=kind)  # type: ignore[arg-type]
    if failed:
        return Row(variant=variant, state=State.FAILED, reason=failed)
    times = milliseconds if isinstance(milliseconds, Mapping) else {(1, 1, 32): milliseconds}
    cells = [
        Cell(threads=t, batch=b, length=n, p50=ms, p90=1.1 * ms, p99=1.2 * ms, mean=ms, calls=9)
        for (t, b, n), ms in times.items()
    ]
    heads = [] if accuracy is None else [Head(output="logits", rows=9, accuracy=accuracy, macro_f1=accuracy)]
    footprint = Footprint(
        disk=memory,
        load_seconds=0.5,
        first_call_seconds=0.1,
        bare_anonymous=0,
        anonymous=memory,
        file_backed=memory // 2,
        peak=2 * memory,
    )
    likeness = Likeness(output="logits", rows=9, cosine=cosine, lowest_cosine=cosine)
    fields: dict[str, Any] = {"cells": cells, "heads": heads, "likenesses": [likeness], "footprint": footprint}
    fields |= {"environment": {"processor": "A", "onnxruntime": "1.31"}} | more
    return Row(variant=variant, state=State.MEASURED, **fields)
