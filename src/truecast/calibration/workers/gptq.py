"""GPTQ by GPTQModel (7.7): rounds column by column, and makes up for each error in the columns that follow."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

FEWEST_CORES = 4
"""GPTQModel refuses to load a model where it counts fewer cores."""


def main(path: str) -> None:
    """Quantizes as the job in the file at `path` says."""
    job: dict[str, Any] = json.loads(Path(path).read_text())
    cores = max(FEWEST_CORES, os.cpu_count() or 1)
    os.cpu_count = lambda: cores  # before the import, which counts

    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=job["bits"], group_size=job["block"], sym=True, desc_act=False, device="cpu")
    model = GPTQModel.load(job["source"], config, backend=BACKEND.AUTO, trust_remote_code=job["trusted"])
    rows = [torch.tensor(row) for row in job["rows"]]
    model.quantize([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows], batch_size=1)
    model.save(job["out"])


if __name__ == "__main__":
    main(sys.argv[1])
