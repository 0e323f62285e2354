"""Writes tests/data/mlx: a module for every kind of code that MLX makes (`pip install mlx mlx-cpu`).

MLX decodes in the dtype of the scales; the oracle does so with scales and biases made float32 first.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
from safetensors.numpy import save_file
from scripts.test_checkpoints.oracle_files import DATA, EXACT

GROUPS = {2: 32, 3: 64, 4: 64, 5: 32, 6: 64, 8: 32}
KINDS = [*(("affine", *kind) for kind in GROUPS.items()), ("affine", 4, 128)]
KINDS += [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]
SHAPE = (6, 128)


def array_of(values: Any) -> np.ndarray:
    """An array of MLX as NumPy's; bfloat16 goes through float32."""
    wide = values.astype(mx.float32) if values.dtype == mx.bfloat16 else values
    return np.array(wide).astype(ml_dtypes.bfloat16) if values.dtype == mx.bfloat16 else np.array(wide)


def main() -> None:
    """Writes the folder."""
    mx.set_default_device(mx.cpu)
    rng, tensors, weights = np.random.default_rng(0), {}, {}
    stated: dict[str, Any] = {"group_size": 64, "bits": 4, "mode": "affine"}
    for index, (mode, bits, group) in enumerate(KINDS):
        name = f"model.layers.{index}.mlp.up_proj"
        floats = mx.array(rng.normal(size=SHAPE).astype(np.float32)).astype(mx.bfloat16)
        kind = {"group_size": group, "bits": bits, "mode": mode}
        made = [part for part in mx.quantize(floats, **kind) if part is not None]
        tensors |= {
            f"{name}.{key}": array_of(part) for key, part in zip(("weight", "scales", "biases"), made, strict=False)
        }
        wide = [made[0], *(part.astype(mx.float32) if mode == "affine" else part for part in made[1:])]
        values = np.array(mx.dequantize(*wide, **kind).astype(mx.float32))
        weights[f"{name}.weight"] = hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
        stated |= {} if kind.items() <= stated.items() else {name: kind}
    folder = DATA / "mlx"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "mlx"})
    config = {"model_type": "llama", "quantization": stated, "quantization_config": stated}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    oracle = {"versions": {"mlx": version("mlx")}, "tolerance": EXACT, "weights": weights}
    (folder / "oracle.json").write_text(json.dumps(oracle, indent=1) + "\n")


if __name__ == "__main__":
    main()
