"""llama.cpp's -log p of every token of the second half of each chunk.

Usage: llama_losses.py MODEL.gguf THREADS      reads a JSON list of chunks of token ids, prints a JSON list of numbers
"""

from __future__ import annotations

import json
import sys

import llama_cpp
import numpy as np

chunks = json.load(sys.stdin)
threads = int(sys.argv[2])
model = llama_cpp.Llama(
    sys.argv[1],
    n_ctx=max(len(chunk) for chunk in chunks),
    n_batch=512,
    n_threads=threads,
    n_threads_batch=threads,
    logits_all=True,
    verbose=False,
)
found: list[float] = []
for ids in chunks:
    model.reset()
    model.eval(ids)
    logits = np.array(model.scores[: len(ids)], np.float64)[len(ids) // 2 : -1]
    logits -= logits.max(-1, keepdims=True)
    chosen = logits[np.arange(len(logits)), ids[len(ids) // 2 + 1 :]]
    found += (np.log(np.exp(logits).sum(-1)) - chosen).tolist()
print(json.dumps(found))
