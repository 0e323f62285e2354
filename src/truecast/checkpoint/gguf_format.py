"""A GGUF file as a `Checkpoint`: transformers names, decoded rows, config.json and tokenizer files from metadata.

Data flow: container → names and rewrites → one reader per tensor (map rows of blocks → decode → undo the rewrite).

A row of a tensor is a whole number of blocks, so any run of rows decodes on its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from truecast.checkpoint.gguf_config import FAMILIES, hugging_face_config
from truecast.checkpoint.gguf_container import Container, TensorEntry, read_container
from truecast.checkpoint.gguf_facts import Facts
from truecast.checkpoint.gguf_names import NAMINGS, target_of
from truecast.checkpoint.gguf_rewrites import Rewrite, row_group, undo
from truecast.checkpoint.gguf_tokenizer import tokenizer_files
from truecast.checkpoint.mapping import map_array
from truecast.checkpoint.model import Array, Checkpoint, FileRange, Reader, StoredTensor
from truecast.errors import InputError

PLAIN_DTYPES: Mapping[GGMLQuantizationType, np.dtype[Any]] = {
    GGMLQuantizationType.F64: np.dtype("<f8"),
    GGMLQuantizationType.F32: np.dtype("<f4"),
    GGMLQuantizationType.F16: np.dtype("<f2"),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}
DECODED_DTYPE = np.dtype(np.float32)


def open_gguf(path: Path) -> Checkpoint:
    """Open the GGUF file at `path`.

    Raises:
        InputError: truncated, corrupt, one part of a split file, or of an unknown architecture.
    """
    container = read_container(path)
    facts = _facts(container)
    config = hugging_face_config(facts)
    side_files: dict[str, Callable[[], bytes]] = {
        "config.json": lambda: (json.dumps(config, indent=2) + "\n").encode(),
        **tokenizer_files(container, facts.size("context_length")),
    }
    return Checkpoint(path, "gguf", config, _tensors(facts), side_files)


def _facts(container: Container) -> Facts:
    path, metadata = container.path, container.metadata
    parts = metadata.get("split.count", 1)
    if parts != 1 and parts != 0:
        raise InputError(f"{path} is one of {parts} parts; join them first with: llama-gguf-split --merge")
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        raise InputError(
            f"{path} holds a model of the architecture {architecture!r}, which is not known; known are "
            f"{', '.join(sorted(FAMILIES.keys() & NAMINGS.keys()))}."
        )
    embedding = container.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise InputError(f"{path} has no token_embd.weight, so it holds no language model; give the model's own file.")

    def read_tensor(name: str) -> Array:
        entry = container.tensors[name]
        return _block_reader(path, entry)(0, _rows(entry))

    return Facts(container, architecture, read_tensor)


def _tensors(facts: Facts) -> dict[str, StoredTensor]:
    container = facts.container
    _check_decodable(container)
    tensors = (_stored_tensor(facts, entry) for entry in container.tensors.values())
    return {tensor.name: tensor for tensor in tensors if tensor is not None}


def _check_decodable(container: Container) -> None:
    """Decode a block of zeros of each type, so that an unknown one is found before any work."""
    for kind in {entry.kind for entry in container.tensors.values()} - PLAIN_DTYPES.keys():
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError as error:
            raise InputError(
                f"{container.path} stores tensors as {kind.name}, which cannot be decoded; quantize it to another type."
            ) from error


def _stored_tensor(facts: Facts, entry: TensorEntry) -> StoredTensor | None:
    path = facts.container.path
    target = target_of(path, facts.architecture, entry.name)
    if target is None:
        return None
    heads = facts.kv_heads if ".attn_k." in entry.name else facts.heads
    rows, rewrite = _rows(entry), target.rewrite
    if rows % (heads * row_group(rewrite)) and row_group(rewrite) > 1:
        raise InputError(f"{path}: the {rows} rows of {entry.name} do not fit {heads} heads; convert the model again.")
    shape = entry.shape[::-1] if rewrite is Rewrite.TRANSPOSED else entry.shape
    dtype = DECODED_DTYPE if rewrite is Rewrite.PLUS_ONE else PLAIN_DTYPES.get(entry.kind, DECODED_DTYPE)
    reader = undo(rewrite, _block_reader(path, entry), rows, heads)
    return StoredTensor(
        name=target.name,
        shape=shape,
        dtype=dtype,
        stored_as=entry.kind.name,
        location=FileRange(path, entry.offset, entry.nbytes),
        reader=reader,
        verbatim=rewrite is Rewrite.NONE and entry.kind in PLAIN_DTYPES,
    )


def _rows(entry: TensorEntry) -> int:
    return entry.shape[0] if entry.shape else 1


def _block_reader(path: Path, entry: TensorEntry) -> Reader:
    """Reads rows as the file has them; a tensor of one dimension is one row of blocks, cut after decoding."""
    plain = PLAIN_DTYPES.get(entry.kind)
    if plain is not None:
        return _plain_reader(path, entry, plain)
    block, block_bytes = (int(size) for size in GGML_QUANT_SIZES[entry.kind])
    *outer, width = entry.shape
    stored = (*outer, width // block * block_bytes)
    row_bytes = math.prod(stored[1:])

    def read(start: int, stop: int) -> Array:
        if len(stored) == 1:
            whole = dequantize(map_array(path, entry.offset, np.dtype(np.uint8), stored), entry.kind)
            return np.asarray(whole[start:stop])
        raw = map_array(path, entry.offset + start * row_bytes, np.dtype(np.uint8), (stop - start, *stored[1:]))
        return _decode(raw, entry)

    return read


def _decode(raw: Array, entry: TensorEntry) -> Array:
    if raw.shape[0] == 0:
        return np.empty((0, *entry.shape[1:]), DECODED_DTYPE)
    return np.asarray(dequantize(raw, entry.kind))


def _plain_reader(path: Path, entry: TensorEntry, dtype: np.dtype[Any]) -> Reader:
    row_shape = entry.shape[1:]
    row_bytes = math.prod(row_shape) * dtype.itemsize

    def read(start: int, stop: int) -> Array:
        return map_array(path, entry.offset + start * row_bytes, dtype, (stop - start, *row_shape))

    return read
