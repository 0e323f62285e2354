"""Writes random quantized checkpoints in the layouts of GPTQ, AWQ and compressed-tensors: 4 bits, groups of 128.

Codes and scales are drawn, not made from weights: what is measured is how fast they are carried over. The table of
tokens and the norms are those of the float checkpoint, in float16.

Usage: quantized.py OUT gptq|awq|compressed-tensors [--shape 0.5b|tiny]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from checkpoint import tokenizer, tokenizer_config, write_json
from shapes import SHAPES, Shape

Array = NDArray[Any]
GROUP = 128
BITS = 4
PER_WORD = 32 // BITS
LARGEST_SCALE = 0.01
"""Scales are uniform below this, so that weights of 4-bit codes are as large as a trained model's."""


def gptq(name: str, rows: int, width: int, random: np.random.Generator) -> Iterator[tuple[str, Array]]:
    """qweight [in / 8, out], qzeros [groups, out / 8] (version 1: 7 means 8), scales [groups, out], g_idx [in]."""
    groups = -(-width // GROUP)
    yield f"{name}.qweight", words(random, width // PER_WORD, rows)
    yield f"{name}.qzeros", np.full((groups, rows // PER_WORD), 0x77777777, np.int32)
    yield f"{name}.scales", scales(random, groups, rows)
    yield f"{name}.g_idx", np.arange(width, dtype=np.int32) // GROUP


def awq(name: str, rows: int, width: int, random: np.random.Generator) -> Iterator[tuple[str, Array]]:
    """qweight [in, out / 8], qzeros [groups, out / 8], scales [groups, out]."""
    groups = -(-width // GROUP)
    yield f"{name}.qweight", words(random, width, rows // PER_WORD)
    yield f"{name}.qzeros", words(random, groups, rows // PER_WORD)
    yield f"{name}.scales", scales(random, groups, rows)


def compressed_tensors(name: str, rows: int, width: int, random: np.random.Generator) -> Iterator[tuple[str, Array]]:
    """weight_packed [out, in / 8], weight_scale [out, groups], weight_shape [2]."""
    yield f"{name}.weight_packed", words(random, rows, width // PER_WORD)
    yield f"{name}.weight_scale", scales(random, rows, -(-width // GROUP))
    yield f"{name}.weight_shape", np.array([rows, width], np.int64)


def words(random: np.random.Generator, rows: int, columns: int) -> Array:
    """Random 32-bit words."""
    return random.integers(-(2**31), 2**31, (rows, columns), np.int32)


def scales(random: np.random.Generator, rows: int, columns: int) -> Array:
    """Random positive scales."""
    return (random.random((rows, columns), np.float32) * LARGEST_SCALE + LARGEST_SCALE / 100).astype(np.float16)


Layout = Callable[[str, int, int, np.random.Generator], Iterator[tuple[str, Array]]]

LAYOUTS: dict[str, tuple[Layout, dict[str, Any]]] = {
    "gptq": (
        gptq,
        {"quant_method": "gptq", "bits": BITS, "group_size": GROUP, "sym": True, "desc_act": False},
    ),
    "awq": (
        awq,
        {"quant_method": "awq", "bits": BITS, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    ),
    "compressed-tensors": (
        compressed_tensors,
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "ignore": ["lm_head"],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {
                        "num_bits": BITS,
                        "type": "int",
                        "symmetric": True,
                        "strategy": "group",
                        "group_size": GROUP,
                    },
                }
            },
        },
    ),
}


def write(out: Path, shape: Shape, layout: str) -> Path:
    """Writes the checkpoint into the folder `out`, which must not exist yet; returns `out`."""
    tensors_of, settings = LAYOUTS[layout]
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    write_json(partial / "config.json", {**shape.config, "torch_dtype": "float16", "quantization_config": settings})
    write_json(partial / "generation_config.json", {"eos_token_id": shape.vocab - 1, "do_sample": False})
    write_json(partial / "tokenizer_config.json", tokenizer_config(shape))
    write_json(partial / "tokenizer.json", tokenizer(shape))
    tensors: dict[str, Array] = {}
    for seed, (name, size) in enumerate(shape.parameters().items()):
        random = np.random.default_rng(seed)
        if "proj.weight" in name:
            tensors.update(tensors_of(name.removesuffix(".weight"), *size, random))
        else:
            plain = np.ones(size) if "norm" in name else random.standard_normal(size, np.float32) * LARGEST_SCALE
            tensors[name] = plain.astype(np.float16)
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    partial.rename(out)
    return out


def main() -> None:
    """Parses the command line and writes the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("layout", choices=LAYOUTS)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    args = parser.parse_args()
    write(args.out, SHAPES[args.shape], args.layout)


if __name__ == "__main__":
    main()
