"""One step of an exported decoder in ONNX Runtime, by nothing but the graph contract."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort


def session(folder: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def tokens(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 250, (batch, length))


def step(folder: Path, ids: np.ndarray, mask: np.ndarray | None = None, keep: int | None = None) -> list[np.ndarray]:
    """Logits and presents of a first step; `keep` None leaves num_logits_to_keep at its default."""
    model = session(folder)
    mask = np.ones_like(ids) if mask is None else mask
    feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": np.maximum(mask.cumsum(1) - 1, 0)}
    for value in model.get_inputs():
        if value.name.startswith("past_key_values"):
            feeds[value.name] = np.zeros((len(ids), value.shape[1], 0, value.shape[3]), np.float32)
    wanted = {value.name for value in model.get_inputs()}
    feeds = {name: array for name, array in feeds.items() if name in wanted}
    if keep is not None:
        feeds["num_logits_to_keep"] = np.array(keep, np.int64)
    results: list[np.ndarray] = model.run(None, feeds)
    return results


def logits(folder: Path, ids: np.ndarray, mask: np.ndarray | None = None, keep: int | None = 0) -> np.ndarray:
    return step(folder, ids, mask, keep)[0]


def load(folder: Path) -> ir.Model:
    return ir.load(folder / "model.onnx")
