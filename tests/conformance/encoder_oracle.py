"""A second opinion on an exported encoder that shares no code with the package: ONNX Runtime against transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers

from tests.conformance.oracle import Agreement
from tests.tiny import Case

Array = np.ndarray[Any, np.dtype[Any]]
SIZES = {"batch_size": 4, "sequence_length": 11, "num_samples": 5000}
OTHER_SIZES = {"batch_size": 2, "sequence_length": 41, "num_samples": 9001}
"""None of these is one of the trace's or of the proof's grid."""


def compare(folder: Path, case: Case, source: Path, **changes: Any) -> Agreement:
    """The artifact in `folder` against the stored model, all outputs together; `changes` alter the configuration."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    model = getattr(transformers, case.model_class).from_pretrained(source, config=case.config(**changes)).eval()
    names = [output.name for output in session.get_outputs()]
    graph, reference = [], []
    for feeds in _feeds(session, case):
        with torch.no_grad():
            wanted = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        graph += [array.ravel() for array in session.run(names, feeds)]
        reference += [wanted[name].numpy().ravel() for name in names]
    got, want = (np.concatenate(parts).astype(np.float64) for parts in (graph, reference))
    cosine = float((got * want).sum() / (np.linalg.norm(got) * np.linalg.norm(want)))
    return Agreement(float(np.abs(got - want).max() / np.abs(want).max()), cosine)


def _feeds(session: onnxruntime.InferenceSession, case: Case) -> Iterator[dict[str, Array]]:
    """Inputs of two sizes, rows padded on the right as a tokenizer does."""
    numbers = np.random.default_rng(7)
    kinds = int(getattr(case.config(), "type_vocab_size", 1))
    for sizes in (SIZES, OTHER_SIZES):
        feeds: dict[str, Array] = {}
        for argument in session.get_inputs():
            shape = [size if isinstance(size, int) else sizes[size] for size in argument.shape]
            if argument.name == "attention_mask":
                feeds[argument.name] = np.ones(shape, np.int64)
            elif argument.type == "tensor(int64)":
                feeds[argument.name] = numbers.integers(0, 200 if argument.name == "input_ids" else kinds, shape)
            else:
                feeds[argument.name] = numbers.standard_normal(shape).astype(np.float32)
        if "attention_mask" in feeds:
            feeds["attention_mask"][1, -3:] = 0
            feeds["input_ids"][1, -3:] = case.config().pad_token_id
        yield feeds
