"""A GGUF file as a `Checkpoint`: transformers names, decoded rows, config.json and tokenizer files from metadata.

Data flow: container → names and rewrites → per tensor a reader of its values (map rows of blocks → decode → undo the
rewrite) and, for a matrix of blocks, its encoding (map rows of blocks → undo the rewrite → shuffle codes and scales).

A row of a tensor is a whole number of blocks, so any run of rows decodes on its own.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from truecast.checkpoint.encoding import Encoding
from truecast.checkpoint.gguf.architectures import FAMILIES
from truecast.checkpoint.gguf.config import hugging_face_config
from truecast.checkpoint.gguf.container import Container, TensorEntry
from truecast.checkpoint.gguf.encodings import encoding_of
from truecast.checkpoint.gguf.interleaved import turned
from truecast.checkpoint.gguf.metadata import Facts
from truecast.checkpoint.gguf.names import NAMINGS, naming_of, target_of
from truecast.checkpoint.gguf.parts import read_whole
from truecast.checkpoint.gguf.rewrites import Rewrite, keeps_blocks, row_unit, undo
from truecast.checkpoint.gguf.special_tokens import stray_ids
from truecast.checkpoint.gguf.split_tensors import number_tensors, pieces
from truecast.checkpoint.gguf.tokenizer import tokenizer_files
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
    """Open the GGUF file at `path`, with its other parts where it is one of several.

    Raises:
        InputError: truncated, corrupt, without one of its parts, or of an unknown architecture.
    """
    container = read_whole(path)
    facts = _facts(container)
    config = hugging_face_config(facts)
    side_files: dict[str, Callable[[], bytes]] = {
        "config.json": lambda: (json.dumps(config, indent=2) + "\n").encode(),
        **tokenizer_files(container, facts.size("context_length"), facts.rows),
    }
    tensors = _tensors(facts)
    quantized = any(tensor.encoding is not None for tensor in tensors.values())
    return Checkpoint(
        path,
        "gguf",
        config,
        tensors,
        side_files,
        quantization="GGUF" if quantized else None,
        notices=(*_notices(tensors.values()), *_stray_notices(facts)),
    )


def _notices(tensors: Collection[StoredTensor]) -> tuple[str, ...]:
    """What the user should know: matrices whose blocks no encoding holds are larger as floats."""
    plain = {kind.name for kind in PLAIN_DTYPES}
    held = [tensor.matrices or tensor for tensor in tensors]
    matrices = [tensor for tensor in held if len(tensor.shape) > 1 and tensor.stored_as not in plain]
    counts = Counter(tensor.stored_as for tensor in matrices if tensor.encoding is None)
    return tuple(
        f"{count} matrices stored as {kind} are read as float32: no integer codes give the values that the model needs."
        for kind, count in sorted(counts.items())
    )


def _stray_notices(facts: Facts) -> tuple[str, ...]:
    """What the user should know of special tokens that the model has no row for."""
    return tuple(
        f"The metadata name {index} as the token {name}, outside the vocabulary of {facts.rows}; it is left out."
        for name, index in stray_ids(facts.container.metadata, facts.rows).items()
    )


def _facts(container: Container) -> Facts:
    path, metadata = container.path, container.metadata
    architecture = metadata.get("general.architecture")
    if metadata.get("general.type") == "adapter":
        raise InputError(
            f"{path} is an adapter of llama.cpp and no model; give the model, and the adapter as peft's "
            "save_pretrained() wrote it with --adapter."
        )
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
        return _decoder(entry, _raw_reader(entry))(0, _rows(entry))

    return Facts(container, architecture, read_tensor)


def _tensors(facts: Facts) -> dict[str, StoredTensor]:
    container = facts.container
    _check_decodable(container)
    naming = naming_of(facts.architecture, container.tensors)
    tensors: dict[str, StoredTensor] = {}
    for entry in container.tensors.values():
        target = target_of(container.path, naming, entry.name)
        if target is not None:
            held = pieces(facts, target, entry)
            tensors |= {name: _stored_tensor(facts, name, piece, target.rewrite) for name, piece in held}
    if naming.turned:
        tensors = turned(container.path, tensors)
    return tensors | {tensor.name: tensor for tensor in number_tensors(facts, naming)}


def _check_decodable(container: Container) -> None:
    """Decode a block of zeros of each type, so that an unknown one is found before any work."""
    for kind in {entry.kind for entry in container.tensors.values()} - PLAIN_DTYPES.keys():
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError as error:
            raise InputError(
                f"{container.path} stores tensors as {kind.name}, which cannot be decoded; quantize it to another type."
            ) from error


def _stored_tensor(facts: Facts, name: str, entry: TensorEntry, rewrite: Rewrite) -> StoredTensor:
    if rewrite is Rewrite.SQUEEZED:
        entry, rewrite = replace(entry, shape=(1, entry.shape[-1])), Rewrite.NONE
    kv_heads = facts.kv_heads
    heads = kv_heads if ".attn_k." in entry.name else facts.heads
    rows = _rows(entry)
    unit = row_unit(rewrite, heads, kv_heads)
    if rows % unit or (unit > 1 and heads % kv_heads):
        raise InputError(
            f"{entry.path}: the {rows} rows of {entry.name} do not fit {heads} and {kv_heads} heads; "
            "convert the model again."
        )
    # The one group of a model with one key head is already [q, k, v].
    rewrite = Rewrite.NONE if rewrite is Rewrite.FUSED_HEADS and kv_heads == 1 else rewrite
    plain = PLAIN_DTYPES.get(entry.kind)
    reader, encoding = _readers(entry, rewrite, heads, kv_heads)
    return StoredTensor(
        name=name,
        shape=entry.shape[::-1] if rewrite is Rewrite.TRANSPOSED else entry.shape,
        dtype=DECODED_DTYPE if plain is None or rewrite is Rewrite.PLUS_ONE else plain,
        stored_as=entry.kind.name,
        location=FileRange(entry.path, entry.offset, entry.nbytes),
        reader=reader,
        verbatim=rewrite is Rewrite.NONE and plain is not None,
        encoding=encoding,
    )


def _readers(entry: TensorEntry, rewrite: Rewrite, heads: int, kv_heads: int) -> tuple[Reader, Encoding | None]:
    """How to read the values, and the encoding where there is one; whole rows are moved before they are decoded."""
    raw, rows = _raw_reader(entry), _rows(entry)
    if len(entry.shape) < 2 or not keeps_blocks(rewrite):
        return undo(rewrite, _decoder(entry, raw), rows, heads, kv_heads), None
    moved = undo(rewrite, raw, rows, heads, kv_heads)
    return _decoder(entry, moved), encoding_of(entry.kind, entry.shape[1], moved) if len(entry.shape) == 2 else None


def _rows(entry: TensorEntry) -> int:
    return entry.shape[0] if entry.shape else 1


def _raw_reader(entry: TensorEntry) -> Reader:
    """Reads rows as they are stored: of their own dtype, or the bytes of their blocks."""
    plain = PLAIN_DTYPES.get(entry.kind)
    dtype = np.dtype(np.uint8) if plain is None else plain
    *outer, width = entry.shape or (1,)
    if plain is None:
        block, block_bytes = (int(size) for size in GGML_QUANT_SIZES[entry.kind])
        width = width // block * block_bytes
    row_shape = (*outer, width)[1:]
    row_bytes = math.prod(row_shape) * dtype.itemsize

    def read(start: int, stop: int) -> Array:
        return map_array(entry.path, entry.offset + start * row_bytes, dtype, (stop - start, *row_shape))

    return read


def _decoder(entry: TensorEntry, raw: Reader) -> Reader:
    """Reads the values, as the gguf package decodes them."""
    if entry.kind in PLAIN_DTYPES:
        return raw

    def read(start: int, stop: int) -> Array:
        if len(entry.shape) == 1:
            # One row of blocks, cut after decoding.
            return _values(raw(0, entry.nbytes), entry)[start:stop]
        return _values(raw(start, stop), entry)

    return read


def _values(raw: Array, entry: TensorEntry) -> Array:
    if raw.shape[0] == 0:
        return np.empty((0, *entry.shape[1:]), DECODED_DTYPE)
    return np.asarray(dequantize(raw, entry.kind))
