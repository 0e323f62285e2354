"""Trains the example's two heads: `train.py MINILM OUT`. A few minutes on two cores; the same seed every time.

The embeddings of words stay as they are; everything else learns for three passes over the training rows.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from pathlib import Path

import torch
from model import CATEGORIES, TwoHeads, untrained
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

HERE = Path(__file__).parent
PASSES, BATCH, LONGEST = 3, 32, 128
ENCODER_RATE, HEAD_RATE, WARM_UP = 1e-4, 2e-3, 0.1
SIDE_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")

Row = tuple[list[int], int, int]
"""Token ids, number of the category, whether attributed."""


def read(name: str, tokenizer: Tokenizer) -> list[Row]:
    """The rows of one of the files."""
    records = [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]
    ids = [found.ids for found in tokenizer.encode_batch([record["text"] for record in records])]
    return [
        (tokens, CATEGORIES.index(record["category"]), record["attributed"])
        for tokens, record in zip(ids, records, strict=True)
    ]


def batches(rows: list[Row], shuffled: random.Random | None) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Tokens, mask and both labels; rows of like length together, the batches in random order when `shuffled`."""
    order = list(rows)
    if shuffled:
        shuffled.shuffle(order)
    order.sort(key=lambda row: len(row[0]))
    made = []
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        size = max(len(tokens) for tokens, _, _ in part)
        ids = torch.tensor([tokens + [0] * (size - len(tokens)) for tokens, _, _ in part])
        mask = torch.tensor([[1] * len(tokens) + [0] * (size - len(tokens)) for tokens, _, _ in part])
        made.append((ids, mask, torch.tensor([row[1] for row in part]), torch.tensor([row[2] for row in part])))
    if shuffled:
        shuffled.shuffle(made)
    return made


def train(model: TwoHeads, rows: list[Row]) -> None:
    """Both heads at once, on the sum of their losses."""
    model.encoder.embeddings.requires_grad_(False)
    heads = [*model.category.parameters(), *model.attributed.parameters()]
    encoder = [weight for weight in model.encoder.parameters() if weight.requires_grad]
    groups = [{"params": encoder, "lr": ENCODER_RATE}, {"params": heads, "lr": HEAD_RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    steps = PASSES * len(batches(rows, None))
    warm = int(WARM_UP * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm))
    )
    mixed, loss_of = random.Random(0), nn.CrossEntropyLoss(label_smoothing=0.05)
    for number in range(PASSES):
        model.train()
        start, total, made = time.perf_counter(), 0.0, batches(rows, mixed)
        for ids, mask, category, attributed in made:
            found = model(ids, mask)
            loss = loss_of(found["category"], category) + loss_of(found["attributed"], attributed)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"pass {number + 1}: loss {total / len(made):.3f}, {time.perf_counter() - start:.0f} s", flush=True)


def scores(model: TwoHeads, rows: list[Row]) -> tuple[float, float]:
    """The accuracies of both heads."""
    model.eval()
    right = [0, 0]
    with torch.inference_mode():
        for ids, mask, *labels in batches(rows, None):
            found = model(ids, mask)
            for place, (name, label) in enumerate(zip(("category", "attributed"), labels, strict=True)):
                right[place] += int((found[name].argmax(1) == label).sum())
    return right[0] / len(rows), right[1] / len(rows)


def main(source: Path, out: Path) -> None:
    """Trains, prints the accuracies, and writes the folder that model.build opens."""
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    torch.manual_seed(0)
    model = untrained(source)
    train(model, read("fortunes-train.jsonl", tokenizer))
    category, attributed = scores(model, read("fortunes-test.jsonl", tokenizer))
    print(f"accuracy on the test rows: category {category:.3f}, attributed {attributed:.3f}")
    out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), out / "model.safetensors")
    for name in SIDE_FILES:
        shutil.copyfile(source / name, out / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
