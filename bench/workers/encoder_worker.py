"""Runs one encoder when told to: `encoder_worker.py torch FOLDER` or `encoder_worker.py onnx FILE`.

One JSON object per line: {"batch": 1, "length": 32, "times": 9, "out": null} → {"seconds": […]}; with `out` the first
output is written there as .npy. The first line written is {"ready": …}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from turns import THREADS

Feeds = dict[str, Any]
Call = Callable[[Feeds], Any]


def feeds(batch: int, length: int) -> Feeds:
    """Token ids that depend on the sizes only; nothing is masked."""
    ids = np.random.default_rng(batch * 1000 + length).integers(1000, 20_000, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def torch_call(path: Path) -> Call:
    """The author's module in PyTorch."""
    import inspect

    import torch
    from transformers import AutoModel

    torch.set_num_threads(THREADS)
    model: Any = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    taken = inspect.signature(model.forward).parameters

    def call(given: Feeds) -> Any:
        tensors = {name: torch.from_numpy(array) for name, array in given.items() if name in taken}
        with torch.inference_mode():
            return model(**tensors).last_hidden_state.numpy()

    return call


def onnx_call(path: Path) -> Call:
    """A graph in ONNX Runtime with its default optimizations; session keys come from an artifact's manifest."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 3
    manifest = path.parent / "truecast.json"
    if manifest.exists():
        for key, value in json.loads(manifest.read_text())["graph"]["session_entries"].items():
            options.add_session_config_entry(key, value)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = [value.name for value in session.get_inputs()]
    first = [session.get_outputs()[0].name]
    return lambda given: session.run(first, {name: given[name] for name in taken})[0]


def serve() -> None:
    """Loads, then takes orders until the input ends."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    call = {"torch": torch_call, "onnx": onnx_call}[sys.argv[1]](Path(sys.argv[2]))
    channel.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        order = json.loads(line)
        given, seconds = feeds(order["batch"], order["length"]), []
        for _ in range(order["times"]):
            start = time.perf_counter()
            result = call(given)
            seconds.append(time.perf_counter() - start)
        if order["out"]:
            np.save(order["out"], np.asarray(result, np.float32))
        channel.write(json.dumps({"seconds": seconds}) + "\n")


if __name__ == "__main__":
    serve()
