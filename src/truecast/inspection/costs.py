"""What each choice costs: bytes on disk, and memory to export, to prove and to run. Estimates, from headers alone."""

from __future__ import annotations

from dataclasses import dataclass

from truecast.checkpoint import Checkpoint, StoredTensor
from truecast.checkpoint.castable import recurs
from truecast.inspection.facts import (
    context_length,
    heads,
    is_module,
    kv_bytes_per_token,
    recording_length,
    vocabulary,
)
from truecast.inspection.model import Choice
from truecast.inspection.storage import (
    HEAD,
    OTHER_TABLE,
    TOKEN_TABLE,
    Outlooks,
    has_experts,
    is_lookup,
    outlooks,
    parameters,
)
from truecast.states import NAMES
from truecast.targets import MODULE_TARGETS, TARGETS
from truecast.targets.portable import PORTABLE
from truecast.weights.names import AS_IS, INTEGERS, MODULE_PRECISIONS, PRECISIONS
from truecast.weights.outlook import order_bytes

BLOCK_SIZE = 32
"""Weights per scale of int8 and int4 where the user chooses none."""
SCALE_BYTES = 4
"""Scales are float32."""
FLOAT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 4, "int4": 4, **dict.fromkeys(INTEGERS, 4)}
"""Bytes of a value that is not quantized, by precision."""
QUANTIZED_BITS = {"int8": 8, "int4": 4}

BASE_BYTES = 500_000_000
"""Memory of an export, and of its proof, beside the models: 0.38 GB for PyTorch, transformers and ONNX Runtime, the
rest for the trace and the chunks of weights under way (0.43 to 0.57 GB measured for an export, 0.50 GB for the proof of
80,000 weights; Linux x86-64, torch 2.13.0+cpu)."""
LOGIT_ROWS, LOGIT_COPIES = 192, 4
"""Rows of logits at the proof's widest point, three texts of 64 tokens, and how often they are held: the author's, the
graph's, those of the original weights, and their differences."""
SOUND_ROWS, HEAVIEST = 9, 1 << 29
"""Rows of the proof's widest point, and bytes of the largest tensor at a point (`proof.module_points`)."""
COPIES = {(False, False): 3, (False, True): 2, (True, False): 2, (True, True): 1}
"""Copies of products, by whether it is a module without a cache, and has codes. ONNX Runtime packs the floats of each
session: as shipped, as written, and of decoders with another number of threads. Codes are decoded once for the proof,
and once more by the session that multiplies exactly."""
RUN_BASE_BYTES = 50_000_000
"""Memory of Python, NumPy, ONNX Runtime 1.31 and tokenizers imported (47 MB measured on Linux x86-64)."""
TOKENIZER_BYTES_PER_TOKEN = 1400
"""Memory of a loaded tokenizer per token of the vocabulary (355 MB measured for the 262144 tokens of Gemma 3)."""
PLANNED_TOKENS = 4096
"""Tokens of cache that running is estimated with, where the context is not shorter."""


@dataclass(frozen=True)
class Size:
    """Bytes of all weights: in the file, and loaded."""

    disk: int
    memory: int


def choices(checkpoint: Checkpoint, becoming: Outlooks) -> tuple[Choice, ...]:
    """Every precision for every target, with its cost; float16 would change which experts are chosen."""
    module = is_module(checkpoint)
    names = (*PRECISIONS, *MODULE_PRECISIONS) if module else PRECISIONS
    possible = [name for name in names if name != "fp16" or not has_experts(checkpoint.tensors.values())]
    sizes = {precision: weight_bytes(checkpoint, precision, becoming=becoming) for precision in possible}
    return tuple(
        Choice(
            target=target,
            precision=precision,
            disk=sizes[precision].disk,
            export_peak=BASE_BYTES,
            proof_peak=proof_bytes(checkpoint, precision, sizes[precision]),
            run_peak=run_bytes(checkpoint, precision, sizes[precision], target),
        )
        for target in (MODULE_TARGETS if module else _targets(checkpoint))
        for precision in possible
    )


def _targets(checkpoint: Checkpoint) -> list[str]:
    """The targets whose runtimes carry what the model's layers do."""
    every = not recurs(checkpoint)
    return [name for name, target in TARGETS.items() if every or target.states == frozenset(NAMES)]


def proof_bytes(checkpoint: Checkpoint, precision: str, size: Size) -> int:
    """Bytes of memory to export and prove.

    Both files, which are mapped; the author's model in float32; copies of every product in float32, `COPIES`; logits.
    """
    count, products = parameter_count(checkpoint), product_count(checkpoint)
    stored = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    copies = COPIES[is_module(checkpoint), _has_codes(checkpoint, precision)]
    weights = FLOAT_BYTES["fp32"] * (count + products * copies)
    rows = LOGIT_ROWS * LOGIT_COPIES * (vocabulary(checkpoint) or 0)
    widest = score_bytes(checkpoint) if is_module(checkpoint) else FLOAT_BYTES["fp32"] * rows
    return BASE_BYTES + stored + size.disk + weights + widest


def score_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of attention scores, before and behind softmax, at the greatest point of a module's grid.

    A recording of fixed length has that at every point, up to nine rows of it; of texts, the longest one stands alone.
    """
    fixed = recording_length(checkpoint)
    rows, length = (1, context_length(checkpoint) or 0) if fixed is None else (SOUND_ROWS, fixed)
    return 2 * min(HEAVIEST, FLOAT_BYTES["fp32"] * rows * (heads(checkpoint) or 0) * length**2)


def product_count(checkpoint: Checkpoint) -> int:
    """Number of weights in matrices that are multiplied with; a table that is the head as well is one of them."""
    tied, tensors = _is_tied(checkpoint), parameters(checkpoint)
    return sum(tensor.size for tensor in tensors if len(tensor.shape) > 1 and not is_lookup(tensor, tied))


def _is_tied(checkpoint: Checkpoint) -> bool:
    """Whether the output head is the table of tokens: a decoder that stores no head."""
    return not is_module(checkpoint) and not any(HEAD.search(tensor.name) for tensor in parameters(checkpoint))


def parameter_count(checkpoint: Checkpoint) -> int:
    """Number of parameters in the tensors; a head that is tied to the embedding is not counted again."""
    return sum(tensor.size for tensor in parameters(checkpoint))


def weight_bytes(
    checkpoint: Checkpoint, precision: str, block: int = BLOCK_SIZE, becoming: Outlooks | None = None
) -> Size:
    """Bytes of the weights: rows · ⌈width / block⌉ · (block · bits / 8 + 4) where quantized, else 4 or 2 per value.

    Quantized are the matrices and the table of token embeddings (if its width is a multiple of the block); norms,
    biases and other tables stay floats. Products of integers have a byte for a weight and a scale for a row. What as-is
    takes is in `becoming`, found anew when it is not given.
    """
    tensors = parameters(checkpoint)
    if precision in INTEGERS:
        size = sum(_channel_bytes(tensor) for tensor in tensors)
        return Size(size, size)
    if precision == AS_IS:
        return _own_bytes(tensors, outlooks(tensors) if becoming is None else becoming)
    size = sum(_tensor_bytes(tensor, precision, block) for tensor in tensors)
    return Size(size, size)


def run_bytes(checkpoint: Checkpoint, precision: str, size: Size, target: str) -> int:
    """Bytes of memory to run: the libraries and the tokenizer, the weights once, and the cache.

    Codes in standard operators are there twice while they are loaded: ONNX Runtime turns them. On the provider a
    precision is meant for: a CPU casts fp16 weights to float32 and takes up to twice as much more.
    """
    context = context_length(checkpoint) or PLANNED_TOKENS
    cache = (kv_bytes_per_token(checkpoint) or 0) * min(context, PLANNED_TOKENS)
    tokenizer = TOKENIZER_BYTES_PER_TOKEN * (vocabulary(checkpoint) or 0)
    turned = size.memory if target == PORTABLE.name and _has_codes(checkpoint, precision) else 0
    return RUN_BASE_BYTES + tokenizer + size.memory + turned + cache


def _has_codes(checkpoint: Checkpoint, precision: str) -> bool:
    """Whether weights are codes in blocks."""
    return precision in QUANTIZED_BITS or (precision == AS_IS and checkpoint.quantization is not None)


def _own_bytes(tensors: list[StoredTensor], becoming: Outlooks) -> Size:
    seen: set[bytes] = set()
    orders = sum(order_bytes(tensor, seen) for tensor in tensors)
    disk, memory = (sum(getattr(becoming[t.name], kind) for t in tensors) for kind in ("disk", "memory"))
    return Size(disk + orders, memory + orders)


def _tensor_bytes(tensor: StoredTensor, precision: str, block: int) -> int:
    bits = QUANTIZED_BITS.get(precision)
    if bits is None or len(tensor.shape) < 2 or OTHER_TABLE.search(tensor.name):
        return tensor.size * FLOAT_BYTES[precision]
    width = tensor.shape[-1]
    if width % block and TOKEN_TABLE.search(tensor.name):
        return tensor.size * FLOAT_BYTES[precision]
    blocks = tensor.size // max(width, 1) * -(-width // block)
    return blocks * (block * bits // 8 + SCALE_BYTES)


def _channel_bytes(tensor: StoredTensor) -> int:
    if len(tensor.shape) != 2 or is_lookup(tensor, tied=False):
        return tensor.size * FLOAT_BYTES["fp32"]
    return tensor.size + SCALE_BYTES * tensor.shape[0]
