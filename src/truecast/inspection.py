"""INSPECT: what a checkpoint is, how it is stored, what it can become, and what that will cost.

Data flow: path → `Checkpoint` (headers only) → sizes from its tensors and config → `Inspection` → a table or JSON.

Nothing is loaded and nothing is executed, so the answer takes well under three seconds for a checkpoint of any size.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table

from truecast.checkpoint import Checkpoint, StoredTensor, open_checkpoint

TARGETS = ("onnxruntime", "genai")
PRECISIONS = ("fp32", "fp16", "int8", "int4")
BLOCK_SIZE = 32
"""Weights per scale of int8 and int4 where the user chooses none."""
SCALE_BYTES = 4
"""Scales are float32."""
FLOAT_BYTES = {"fp32": 4, "fp16": 2, "int8": 4, "int4": 4}
"""Bytes of a value that is not quantized, by precision."""
QUANTIZED_BITS = {"int8": 8, "int4": 4}

EXPORT_BASE_BYTES = 700_000_000
"""Memory of an export beside the models: 0.38 GB for PyTorch, transformers and ONNX Runtime imported (measured on Linux
x86-64, torch 2.13.0+cpu), the rest for the trace and the chunks of weights under way."""
RUN_BASE_BYTES = 50_000_000
"""Memory of Python, NumPy, ONNX Runtime 1.31 and tokenizers imported (47 MB measured on Linux x86-64)."""
TOKENIZER_BYTES_PER_TOKEN = 1400
"""Memory of a loaded tokenizer per token of the vocabulary (355 MB measured for the 262144 tokens of Gemma 3)."""
PLANNED_TOKENS = 4096
"""Tokens of cache that running is estimated with, where the context is not shorter."""

_DECODER = re.compile(r"(ForCausalLM|LMHeadModel)$")
_TOKEN_TABLE = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$")
_OTHER_TABLE = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
_BUFFER = re.compile(r"(^|\.)(rotary_emb\.\w+|attn\.bias|attn\.masked_bias|attention\.bias|attention\.masked_bias)$")
"""Tensors that older versions of transformers saved although they are no parameters."""


@dataclass(frozen=True)
class StorageGroup:
    """Tensors that are stored alike: `pattern` is their name with `*` for the number of the layer."""

    pattern: str
    stored_as: str
    tensors: int
    nbytes: int


@dataclass(frozen=True)
class Choice:
    """One thing the checkpoint can become, with its estimated cost in bytes.

    `disk`: the weights. `export_peak`: memory of an export without its proof. `proof_peak`: memory of an export with
    it. `run_peak`: memory of generating with a cache of `PLANNED_TOKENS` tokens, or of the context where it is shorter.
    """

    target: str
    precision: str
    disk: int
    export_peak: int
    proof_peak: int
    run_peak: int


@dataclass(frozen=True)
class Recommendation:
    """The precision to choose on a provider, and why."""

    provider: str
    precision: str
    reason: str


@dataclass(frozen=True)
class Inspection:
    """What `truecast inspect` answers. Sizes in bytes; None where the configuration does not tell.

    `parameters` counts a tied tensor once, and is None for a checkpoint that is already quantized. `kv_bytes_per_token`
    is for a float32 cache. `obstacle` is the sentence that says why `choices` is empty.
    """

    path: str
    format: str
    architecture: str
    model_type: str
    parameters: int | None
    stored_bytes: int
    storage: tuple[StorageGroup, ...]
    quantization: str | None
    context_length: int | None
    vocabulary: int | None
    layers: int | None
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    kv_bytes_per_token: int | None
    choices: tuple[Choice, ...]
    recommendation: Recommendation
    obstacle: str | None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def inspect(path: Path | str) -> Inspection:
    """Inspect the checkpoint at `path`.

    Raises:
        InputError: it cannot be opened.
    """
    return inspect_checkpoint(open_checkpoint(path))


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """Inspect an open checkpoint."""
    config = _text_config(checkpoint)
    quantization = _quantization(checkpoint)
    obstacle = _obstacle(checkpoint, quantization)
    return Inspection(
        path=str(checkpoint.path),
        format=checkpoint.format,
        architecture=_architecture(checkpoint),
        model_type=str(checkpoint.config.get("model_type", "unknown")),
        parameters=None if quantization else parameter_count(checkpoint),
        stored_bytes=sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
        storage=storage_groups(checkpoint.tensors.values()),
        quantization=quantization,
        context_length=_first(config, "max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length"),
        vocabulary=_first(config, "vocab_size"),
        layers=_first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        heads=_first(config, "num_attention_heads", "n_head", "n_heads"),
        kv_heads=_kv_heads(config),
        head_dim=_head_dim(config),
        kv_bytes_per_token=kv_bytes_per_token(checkpoint),
        choices=() if obstacle else _choices(checkpoint),
        recommendation=recommend(checkpoint, "cpu"),
        obstacle=obstacle,
    )


def recommend(checkpoint: Checkpoint, provider: str) -> Recommendation:
    """The precision to choose for `provider` (`cpu`, `cuda`, …), and why."""
    if not _is_decoder(checkpoint):
        return Recommendation(provider, "fp32", "no other precision is known to be right for this kind of model")
    if provider == "cpu":
        reason = "each new token reads every weight once, and int4 has about a seventh of the bytes of float32"
        return Recommendation(provider, "int4", reason)
    reason = "a GPU multiplies float16 fastest, and it has half the bytes of float32"
    return Recommendation(provider, "fp16", reason)


def recommended_precision(checkpoint: Checkpoint, provider: str) -> str:
    """The precision of `recommend`."""
    return recommend(checkpoint, provider).precision


def storage_groups(tensors: Iterable[StoredTensor]) -> tuple[StorageGroup, ...]:
    """How the tensors are stored, the largest group first."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for tensor in tensors:
        groups[re.sub(r"(?<=\.)\d+(?=\.)", "*", tensor.name), tensor.stored_as].append(tensor.nbytes)
    found = (StorageGroup(*key, len(sizes), sum(sizes)) for key, sizes in groups.items())
    return tuple(sorted(found, key=lambda group: (-group.nbytes, group.pattern, group.stored_as)))


def parameter_count(checkpoint: Checkpoint) -> int:
    """Number of parameters in the tensors; a head that is tied to the embedding is not counted again."""
    return sum(tensor.size for tensor in _parameters(checkpoint))


def kv_bytes_per_token(checkpoint: Checkpoint) -> int | None:
    """Bytes of float32 keys and values that one token adds: 2 · layers · kv_heads · head_dim · 4."""
    config = _text_config(checkpoint)
    layers = _first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    sizes = (layers, _kv_heads(config), _head_dim(config))
    if not _is_decoder(checkpoint) or None in sizes or "kv_lora_rank" in config:
        return None
    layers, kv_heads, head_dim = (int(size or 0) for size in sizes)
    return 2 * layers * kv_heads * head_dim * FLOAT_BYTES["fp32"]


def disk_bytes(checkpoint: Checkpoint, precision: str, block: int = BLOCK_SIZE) -> int:
    """Bytes of the weights: rows · ⌈width / block⌉ · (block · bits / 8 + 4) where quantized, else 4 or 2 per value.

    Quantized are the matrices and the table of token embeddings (if its width is a multiple of the block); norms,
    biases and other tables stay floats.
    """
    return sum(_tensor_bytes(tensor, precision, block) for tensor in _parameters(checkpoint))


def run_bytes(checkpoint: Checkpoint, precision: str, block: int = BLOCK_SIZE) -> int:
    """Bytes of memory to generate: the libraries and the tokenizer, the weights once, and the cache.

    On the provider a precision is meant for: a CPU casts fp16 weights to float32 and takes up to twice as much more.
    """
    config = _text_config(checkpoint)
    context = _first(config, "max_position_embeddings", "n_positions") or PLANNED_TOKENS
    cache = (kv_bytes_per_token(checkpoint) or 0) * min(context, PLANNED_TOKENS)
    tokenizer = TOKENIZER_BYTES_PER_TOKEN * (_first(config, "vocab_size") or 0)
    return RUN_BASE_BYTES + tokenizer + disk_bytes(checkpoint, precision, block) + cache


def proof_bytes(checkpoint: Checkpoint, precision: str, block: int = BLOCK_SIZE) -> int:
    """Bytes of memory to export and prove: 4 per parameter for the author's model in float32, beside `run_bytes`."""
    reference = FLOAT_BYTES["fp32"] * parameter_count(checkpoint)
    return EXPORT_BASE_BYTES + reference + run_bytes(checkpoint, precision, block)


def _choices(checkpoint: Checkpoint) -> tuple[Choice, ...]:
    return tuple(
        Choice(
            target=target,
            precision=precision,
            disk=disk_bytes(checkpoint, precision),
            export_peak=EXPORT_BASE_BYTES,
            proof_peak=proof_bytes(checkpoint, precision),
            run_peak=run_bytes(checkpoint, precision),
        )
        for target in TARGETS
        for precision in PRECISIONS
    )


def _parameters(checkpoint: Checkpoint) -> list[StoredTensor]:
    tensors = [tensor for tensor in checkpoint.tensors.values() if not _BUFFER.search(tensor.name)]
    tied = checkpoint.config.get("tie_word_embeddings", False) and any(_TOKEN_TABLE.search(t.name) for t in tensors)
    return [tensor for tensor in tensors if not (tied and _HEAD.search(tensor.name))]


def _tensor_bytes(tensor: StoredTensor, precision: str, block: int) -> int:
    bits = QUANTIZED_BITS.get(precision)
    if bits is None or len(tensor.shape) < 2 or _OTHER_TABLE.search(tensor.name):
        return tensor.size * FLOAT_BYTES[precision]
    width = tensor.shape[-1]
    if width % block and _TOKEN_TABLE.search(tensor.name):
        return tensor.size * FLOAT_BYTES[precision]
    blocks = tensor.size // max(width, 1) * -(-width // block)
    return blocks * (block * bits // 8 + SCALE_BYTES)


def _obstacle(checkpoint: Checkpoint, quantization: str | None) -> str | None:
    if quantization:
        return f"it is already quantized ({quantization}), which this version does not convert yet"
    if not _is_decoder(checkpoint):
        return f"{_architecture(checkpoint)} is no decoder language model, which is what this version converts"
    return None


def _is_decoder(checkpoint: Checkpoint) -> bool:
    return bool(_DECODER.search(_architecture(checkpoint)))


def _architecture(checkpoint: Checkpoint) -> str:
    names = checkpoint.config.get("architectures") or []
    return str(names[0]) if isinstance(names, list) and names else "unknown"


def _quantization(checkpoint: Checkpoint) -> str | None:
    quantization = checkpoint.config.get("quantization_config")
    if quantization is None:
        return None
    return str(quantization.get("quant_method", "unknown")) if isinstance(quantization, dict) else "unknown"


def _text_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The settings of the language model, which a model of several modalities keeps apart."""
    nested = checkpoint.config.get("text_config")
    return {**checkpoint.config, **nested} if isinstance(nested, dict) else checkpoint.config


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    """The first setting that is there, under the names that architectures give it."""
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def _kv_heads(config: Mapping[str, Any]) -> int | None:
    return _first(config, "num_key_value_heads", "num_attention_heads", "n_head", "n_heads")


def _head_dim(config: Mapping[str, Any]) -> int | None:
    stated = _first(config, "head_dim")
    width, heads = _first(config, "hidden_size", "n_embd"), _first(config, "num_attention_heads", "n_head", "n_heads")
    return stated or (width // heads if width and heads else None)


def render(inspection: Inspection) -> RenderableType:
    """The inspection as tables for a terminal."""
    parts: list[RenderableType] = [_facts(inspection), _storage(inspection)]
    if inspection.obstacle:
        parts.append(f"It can become nothing yet: {inspection.obstacle}.")
    else:
        advice = inspection.recommendation
        parts.append(_costs(inspection))
        parts.append(f"Recommended on {advice.provider}: {advice.precision}, because {advice.reason}.")
    return Group(*parts)


def _facts(inspection: Inspection) -> Table:
    table = Table.grid(padding=(0, 2))
    shape = (inspection.layers, inspection.heads, inspection.kv_heads, inspection.head_dim)
    layers, heads, kv_heads, head_dim = ("?" if size is None else size for size in shape)
    parameters = "not counted" if inspection.parameters is None else f"{inspection.parameters:,}"
    cache = inspection.kv_bytes_per_token
    for name, value in (
        ("Checkpoint", f"{inspection.path} ({inspection.format}, {decimal(inspection.stored_bytes)})"),
        ("Architecture", f"{inspection.architecture} ({inspection.model_type})"),
        ("Parameters", parameters),
        ("Layers", f"{layers} with {heads} heads, {kv_heads} for keys and values, of {head_dim}"),
        ("Vocabulary", _count(inspection.vocabulary)),
        ("Context", f"{_count(inspection.context_length)} tokens"),
        ("Cache", "unknown" if cache is None else f"{decimal(cache)} per token in float32"),
    ):
        table.add_row(f"[bold]{name}[/bold]", value)
    return table


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _storage(inspection: Inspection) -> Table:
    table = Table("tensors", "stored as", "number", "size", title="How it is stored", title_justify="left")
    for group in inspection.storage:
        table.add_row(group.pattern, group.stored_as, str(group.tensors), decimal(group.nbytes))
    return table


def _costs(inspection: Inspection) -> Table:
    """One row per cost; targets that cost the same share it."""
    heading = ("precision", "target", "on disk", "memory to export", "… and prove", "to run")
    table = Table(*heading, title="What it can become (estimates)", title_justify="left")
    targets: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for choice in inspection.choices:
        sizes = (choice.disk, choice.export_peak, choice.proof_peak, choice.run_peak)
        targets[choice.precision, *(decimal(size) for size in sizes)].append(choice.target)
    for (precision, *shown), names in targets.items():
        table.add_row(precision, ", ".join(names), *shown)
    return table
