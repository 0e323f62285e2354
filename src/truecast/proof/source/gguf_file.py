"""A GGUF file's tensors under the names of the author's model, decoded by the gguf package's own functions.

Data flow: file → the package's reader → for each parameter of the model the tensor that the package's table names →
decoded → back to what it was before llama.cpp's converter changed it:

| tensors | what convert_hf_to_gguf.py did | there |
|---|---|---|
| queries and keys of `PERMUTED` | rows of the two rotary halves interleaved | `LlamaModel.permute` |
| norms of `PLUS_ONE` | 1 added | `modify_tensors` of `GemmaModel`, `Gemma2Model`, `Gemma3Model`, `NemotronModel` |
| matrices of GPT-2 | transposed | `GPT2Model.modify_tensors` |
| fused rows of `GROUPED` | [q, k, v] of each key head regrouped as all q, all k, all v | `BloomModel`, `FalconModel` |
| experts of `TURNED` | gate and up taken apart, transposed | `GptOssModel.generate_extra_tensors` |
| the norms of single heads | stacked | `StableLMModel._stack_qk_norm` |

Source: https://github.com/ggml-org/llama.cpp. Nothing here knows of the exporter's reader.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize

from truecast.proof.operators import Array
from truecast.proof.source.definitions import Decoded

PERMUTED = frozenset({"arcee", "granite", "llama", "mistral3", "olmo", "smollm3"})
PLUS_ONE = frozenset({"gemma", "gemma2", "gemma3", "nemotron"})
GROUPED = frozenset({"bloom", "falcon", "gptneox"})
TURNED = frozenset({"gpt-oss"})
TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight")
ROTARY = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
"""Tensors that are no parameters: what frequencies are divided by."""
EXPERTS = re.compile(r"(.+\.experts)\.(gate_up|down)_proj(_bias)?")
HEAD_NORMS = re.compile(r"(.+)\.norms\.(\d+)(\.weight)")
XIELU = re.compile(r".+\.(\d+)\.mlp\.act_fn\.(\w+)")
"""Learned numbers of an activation, which are metadata, one for each block."""
FUSED = re.compile(r"\.attn_([qkv])\.")
PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
AT_ONCE = 1 << 18
"""Values decoded at once; the package goes through a matrix by 16 rows, which takes twice as long."""


class _Reader(gguf.GGUFReader):
    """The package's reader, which makes no objects of the strings of a vocabulary: that took 11 s of 262,144 tokens."""

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[Array], list[int], list[gguf.GGUFValueType]]:
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = gguf.GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        count, start = int(self._get(orig_offs + 4, np.uint64)[0]), orig_offs + 12
        types = [gguf.GGUFValueType.ARRAY, kind]
        if kind != gguf.GGUFValueType.STRING:
            values = self._get(start, self.gguf_scalar_to_np[kind], count)
            return 12 + values.nbytes, [values], [0], types
        data: Any = memoryview(self.data)  # type: ignore[arg-type]
        length, end = struct.Struct("<Q"), start
        for _ in range(count):
            end += length.size + length.unpack_from(data, end)[0]
        return end - orig_offs, [], [], types


@dataclass(frozen=True)
class GgufFile:
    """The metadata and the tensors of a file and of its other parts, as the package reads them."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, gguf.ReaderTensor]

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """The file at `path`; one of several parts with all the others."""
        part = PART.fullmatch(path.name)
        paths = sorted(path.parent.glob(f"{part[1]}-*-of-{part[2]}.gguf")) if part else [path]
        readers = [_Reader(name) for name in paths]
        metadata = {name: field.contents() for name, field in readers[0].fields.items()}
        return cls(metadata, {tensor.name: tensor for reader in readers for tensor in reader.tensors})

    @property
    def architecture(self) -> str:
        """llama.cpp's name for the kind of model."""
        return str(self.metadata["general.architecture"])

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `{architecture}.{key}`."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return default if value is None else value

    @property
    def heads(self) -> tuple[int, int]:
        """Heads of queries and of keys; of as many keys as queries where the file does not say."""
        heads = int(self.get("attention.head_count"))
        return heads, int(self.get("attention.head_count_kv", heads))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows of a tensor, slowest axis first, in float32."""
        tensor = self.tensors[name]
        data = tensor.data[start:stop]
        if data.dtype.kind == "f":
            return np.asarray(data, np.float32)
        block, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        stored, step = data.reshape(-1), AT_ONCE // block * size
        values = np.empty(stored.size // size * block, np.float32)
        for first in range(0, stored.size, step):
            decoded = dequantize(stored[first : first + step], tensor.tensor_type)
            values[first // size * block :][: decoded.size] = decoded
        return values.reshape(*data.shape[:-1], -1)


def parameters_of(file: GgufFile, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Decoded]:
    """What the file holds of the parameters of a model, by name; tensors that none of them is, under their own.

    Args:
        file: of an architecture that the package knows.
        shapes: of the parameters and persistent buffers of the model.
    """
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == file.architecture)
    table = gguf.get_tensor_name_map(arch, int(file.get("block_count")))
    made: dict[str, Decoded] = {}
    used: set[str] = set(ROTARY)
    for name, shape in shapes.items():
        stored, make = _maker(file, table, name)
        used.update(stored)
        if all(part in file.tensors for part in stored):
            made[name] = Decoded(partial(_tensor, make, shape))
    rest = {name: Decoded(partial(_tensor, partial(file.read, name))) for name in file.tensors if name not in used}
    return {**made, **rest}


def _tensor(make: Callable[[], Array], shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """A tensor; where only axes of size 1 differ, of the parameter's shape."""
    values = np.ascontiguousarray(make())
    if shape is not None and [n for n in values.shape if n != 1] == [n for n in shape if n != 1]:
        values = values.reshape(shape)
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def _maker(file: GgufFile, table: gguf.TensorNameMap, name: str) -> tuple[tuple[str, ...], Callable[[], Array]]:
    """The tensors that a parameter is made of, and how."""
    if found := XIELU.fullmatch(name):
        listed = file.metadata[f"xielu.{found[2]}"]
        return (), lambda: np.array(listed[int(found[1])], np.float32).reshape(1)
    if found := HEAD_NORMS.fullmatch(name):
        stored, head = _stored_name(table, found[1] + found[3]), int(found[2])
        return (stored,), partial(file.read, stored, head, head + 1)
    if found := EXPERTS.fullmatch(name):
        leaf, suffix = found[1], ".bias" if found[3] else ".weight"
        parts = ("gate", "up") if found[2] == "gate_up" else ("down",)
        names = tuple(_stored_name(table, f"{leaf}.{part}_proj{suffix}") for part in parts)
        return names, partial(_experts, file, names, file.architecture in TURNED)
    stored = _stored_name(table, name)
    fused = FUSED.sub(".attn_qkv.", stored)
    if stored not in file.tensors and fused in file.tensors:
        return (fused,), partial(_part, file, fused, "qkv".index(FUSED.findall(stored)[0]))
    return (stored,), lambda: _before(file, name, stored, file.read(stored))


def _stored_name(table: gguf.TensorNameMap, name: str) -> str:
    """The package's name for a parameter, which may lack an ending, or have the name of the model in front."""
    tried = (f"{name}.weight", name, name.partition(".")[2])
    found = (table.get_name(spelling, try_suffixes=(".weight", ".bias")) for spelling in tried)
    return next((stored for stored in found if stored is not None), name)


def _experts(file: GgufFile, names: tuple[str, ...], turned: bool) -> Array:
    """All experts of a layer: [experts, out, in] with gate above up, or [experts, in, out] with both taking turns."""
    parts = [file.read(name) for name in names]
    if not turned:
        return np.concatenate(parts, 1)
    rows = np.stack(parts, 2).reshape(len(parts[0]), -1, *parts[0].shape[2:])
    return rows.swapaxes(1, 2) if rows.ndim > 2 else rows


def _part(file: GgufFile, fused: str, index: int) -> Array:
    """Queries, keys or values of a tensor that has them one below the other."""
    heads, kv_heads = file.heads
    width = int(file.tensors[fused].shape[-1]) // (heads + 2 * kv_heads)
    bounds = (0, heads * width, (heads + kv_heads) * width, (heads + 2 * kv_heads) * width)
    return file.read(fused, bounds[index], bounds[index + 1])


def _before(file: GgufFile, name: str, stored: str, values: Array) -> Array:
    """The values before the converter changed them."""
    heads, kv_heads = file.heads
    if file.architecture in PERMUTED and (found := re.search(r"\.attn_([qk])\.", stored)):
        return _unpermuted(values, heads if found[1] == "q" else kv_heads)
    if file.architecture in PLUS_ONE and name.endswith("norm.weight"):
        return values - np.float32(1)
    if file.architecture == "gpt2" and TRANSPOSED.search(name):
        return values.T
    return _regrouped(values, heads, kv_heads) if file.architecture in GROUPED and ".attn_qkv." in stored else values


def _unpermuted(values: Array, heads: int) -> Array:
    pairs = values.reshape(heads, len(values) // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _regrouped(values: Array, heads: int, kv_heads: int) -> Array:
    """All queries, all keys, all values → for each key head its queries, its key and its value."""
    width = len(values) // (heads + 2 * kv_heads)
    parts: Iterator[Array] = iter(np.split(values, [heads * width, (heads + kv_heads) * width]))
    return np.concatenate([part.reshape(kv_heads, -1, *values.shape[1:]) for part in parts], 1).reshape(values.shape)
