"""AutoRound, and AWQ as auto-round has it (0.16): tunes the rounding, or the scales of columns, on calibration text."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SEED = 42


def main(path: str) -> None:
    """Quantizes as the job in the file at `path` says."""
    from auto_round import AutoRound

    job: dict[str, Any] = json.loads(Path(path).read_text())
    options = {"trust_remote_code": job["trusted"]}
    model = AutoModelForCausalLM.from_pretrained(job["source"], dtype="auto", **options)
    tokenizer = AutoTokenizer.from_pretrained(job["source"], **options)
    awq = job["method"] == "awq"
    with tempfile.TemporaryDirectory() as nowhere:
        if awq:
            # auto-round copies float32 tensors of the source over what it saves, norms too, which undoes AWQ's folding
            model.name_or_path = model.config._name_or_path = nowhere
        rows = [torch.tensor([row]) for row in job["rows"]]
        AutoRound(
            model,
            tokenizer,
            bits=job["bits"],
            group_size=job["block"],
            sym=True,
            dataset=rows,
            nsamples=len(rows),
            seqlen=len(job["rows"][0]),
            batch_size=1,
            device_map="cpu",
            enable_torch_compile=False,
            seed=SEED,
            **({"alg_configs": "awq"} if awq else {"iters": job["steps"]}),
        ).quantize_and_save(job["out"], format="auto_round")


if __name__ == "__main__":
    main(sys.argv[1])
