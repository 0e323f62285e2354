"""Writes a random checkpoint in Hugging Face's layout: config.json, model.safetensors (bfloat16) and a tokenizer.

The weights are drawn from a generator seeded per tensor and written some rows at a time, so the same call gives the
same bytes and memory stays small. With `--sparse` the tensors are holes in the file: zeros that take no room on the
disk, for measuring the memory that an export of a large model takes.

Usage: checkpoint.py OUT [--shape 0.5b|3b|tiny] [--sparse]
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from shapes import SHAPES, Shape

CHUNK_ELEMENTS = 1 << 22
"""Elements drawn at a time: 16 MiB as float32."""
STANDARD_DEVIATION = 0.02
"""Of the random weights: `initializer_range` of the config, so that the activations stay in an ordinary range."""
BYTES_PER_ELEMENT = 2


def write(out: Path, shape: Shape, sparse: bool = False) -> Path:
    """Writes the checkpoint into the folder `out`, which must not exist yet; returns `out`."""
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    write_json(partial / "config.json", shape.config)
    write_json(partial / "generation_config.json", {"eos_token_id": shape.vocab - 1, "do_sample": False})
    write_json(partial / "tokenizer_config.json", tokenizer_config(shape))
    write_json(partial / "tokenizer.json", tokenizer(shape))
    _write_tensors(partial / "model.safetensors", shape.parameters(), sparse)
    partial.rename(out)
    return out


def tokenizer_config(shape: Shape) -> dict[str, Any]:
    """The content of tokenizer_config.json; the class is one that every contender knows."""
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": _word(shape.vocab - 1, shape),
        "pad_token": _word(shape.vocab - 1, shape),
        "model_max_length": shape.config["max_position_embeddings"],
    }


def tokenizer(shape: Shape) -> dict[str, Any]:
    """The content of tokenizer.json: byte-level BPE without merges, with a word for every id of the vocabulary."""
    special = [
        {"id": index, "content": _word(index, shape), "special": True, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for index in (shape.vocab - 2, shape.vocab - 1)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {_word(i, shape): i for i in range(shape.vocab)}, "merges": []},
    }


def _word(index: int, shape: Shape) -> str:
    """The text of one token: a byte for the first 256, `<|end|>`-like words for the last two, else ` w<index>`."""
    if index < len(BYTE_CHARACTERS):
        return BYTE_CHARACTERS[index]
    if index >= shape.vocab - 2:
        return "<|begin|>" if index == shape.vocab - 2 else "<|end|>"
    return f"{BYTE_CHARACTERS[ord(' ')]}w{index}"


def _byte_characters() -> list[str]:
    """The printable character that byte-level BPE uses for each byte, as GPT-2 defined them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in printable)
    return [
        character
        for _, character in sorted(
            [(byte, chr(byte)) for byte in printable] + [(byte, chr(256 + i)) for i, byte in enumerate(others)]
        )
    ]


BYTE_CHARACTERS = _byte_characters()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tensors(path: Path, parameters: dict[str, tuple[int, ...]], sparse: bool) -> None:
    """Writes one safetensors file: the length of the header, the header, then the tensors without gaps."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in parameters.items():
        end = offset + int(np.prod(shape)) * BYTES_PER_ELEMENT
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if sparse:
            file.truncate(file.tell() + offset)
            return
        for seed, (name, shape) in enumerate(parameters.items()):
            for chunk in _values(name, int(np.prod(shape)), seed):
                file.write(chunk.tobytes())


def _values(name: str, size: int, seed: int) -> Iterator[NDArray[Any]]:
    """The bfloat16 values of one tensor, in pieces: ones for a norm's weight, otherwise normally distributed."""
    generator = np.random.default_rng(seed)
    for start in range(0, size, CHUNK_ELEMENTS):
        count = min(CHUNK_ELEMENTS, size - start)
        if "norm" in name:
            yield np.ones(count, ml_dtypes.bfloat16)
        else:
            yield (generator.standard_normal(count, np.float32) * STANDARD_DEVIATION).astype(ml_dtypes.bfloat16)


def main() -> None:
    """Parses the command line and writes the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--sparse", action="store_true", help="holes instead of data")
    args = parser.parse_args()
    write(args.out, SHAPES[args.shape], args.sparse)


if __name__ == "__main__":
    main()
