"""Writes the weights of a Hugging Face qwen2 checkpoint as a GGUF file for llama.cpp.

One tensor at a time is read, quantized and written. The tokenizer is a placeholder (one made-up word per id), because
the benchmark feeds token ids. llama.cpp's own converter and quantizer make the same blocks; they are not in its Python
package, and this file stands in for them, so its own time says nothing about llama.cpp.

Usage: write_gguf.py CHECKPOINT OUT.gguf [--type Q4_0|Q8_0]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes  # noqa: F401  (teaches NumPy the bfloat16 that safetensors returns)
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

MERGED = ("a", "b", "ab")
"""The only merge, which a byte-level vocabulary must have, and its parts."""
ROWS_AT_A_TIME = 8192
"""Rows of a matrix quantized at a time, so that the float32 copies stay small."""


def write(source: Path, out: Path, kind: str = "Q4_0") -> Path:
    """Writes the checkpoint in the folder `source` to the file `out`, its matrices as `kind`; returns `out`."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    partial = out.with_name(f".{out.name}.partial")
    writer = gguf.GGUFWriter(partial, "qwen2")
    _describe(writer, config)
    kinds = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    with safe_open(source / "model.safetensors", "numpy") as tensors:
        sources = {_renamed(kinds, name): name for name in tensors.keys()}  # noqa: SIM118  (a file, not a dict)
        for new, old in sources.items():
            _announce(writer, new, tensors.get_slice(old).get_shape(), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for old in sources.values():
            writer.write_tensor_data(_encoded(tensors.get_tensor(old), kind))
    writer.close()
    return partial.rename(out)


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Writes the metadata: the model's sizes and the placeholder tokenizer."""
    writer.add_name("bench")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    made_up = [f"<t{index}>" for index in range(config["vocab_size"] - len(MERGED))]
    writer.add_token_list([*MERGED, *made_up])
    writer.add_token_types([gguf.TokenType.NORMAL] * config["vocab_size"])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def _renamed(names: gguf.TensorNameMap, name: str) -> str:
    """The GGUF name of a Hugging Face tensor."""
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise SystemExit(f"{name} has no GGUF name: only qwen2 checkpoints can be converted.")
    return found


def _announce(writer: gguf.GGUFWriter, name: str, shape: list[int], kind: str) -> None:
    """Adds one tensor to the list that precedes the data."""
    if len(shape) == 1:
        writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
        return
    quantization = gguf.GGMLQuantizationType[kind]
    packed = gguf.quant_shape_to_byte_shape(shape, quantization)
    writer.add_tensor_info(name, packed, np.dtype(np.uint8), int(np.prod(packed)), quantization)


def _encoded(tensor: NDArray[Any], kind: str) -> NDArray[Any]:
    """A vector as float32, a matrix in blocks of type `kind`."""
    if tensor.ndim == 1:
        return tensor.astype(np.float32)
    quantization = gguf.GGMLQuantizationType[kind]
    pieces = [tensor[start : start + ROWS_AT_A_TIME] for start in range(0, len(tensor), ROWS_AT_A_TIME)]
    return np.concatenate([gguf.quants.quantize(piece.astype(np.float32), quantization) for piece in pieces])


def main() -> None:
    """Parses the command line and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=("Q4_0", "Q8_0"), default="Q4_0")
    args = parser.parse_args()
    write(args.checkpoint, args.out, args.type)


if __name__ == "__main__":
    main()
