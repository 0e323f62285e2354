"""How a checkpoint is stored: tensors alike as one group, and what the precision as-is makes of each.

Data flow: the checkpoint's tensors → the use of each, by its name → its `Outlook` → groups, the largest first.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from truecast.checkpoint import Checkpoint, StoredTensor
from truecast.checkpoint.castable import EXPERTS
from truecast.inspection.model import WHOLE_ROW, StorageGroup
from truecast.weights.outlook import Outlook, Use, outlook

TOKEN_TABLE = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$")
OTHER_TABLE = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings|token_type_embeddings)\.weight$")
TABLE = re.compile(f"{TOKEN_TABLE.pattern}|{OTHER_TABLE.pattern}")
ROUTER = re.compile(r"(^|\.)(router|gate)(\.layer)?\.weight$")
"""The scores of experts are computed in float32."""
HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
BUFFER = re.compile(r"(^|\.)(rotary_emb\.\w+|attn\.bias|attn\.masked_bias|attention\.bias|attention\.masked_bias)$")
"""Tensors that older versions of transformers saved although they are no parameters."""
FLOAT_NAMES = frozenset({"F64", "F32", "F16", "BF16"})
"""What both formats call tensors of floats."""

Outlooks = Mapping[str, Outlook]
"""What becomes of tensors, by their names."""


def parameters(checkpoint: Checkpoint) -> list[StoredTensor]:
    """The tensors that are parameters; a head that is tied to the embedding is none of its own."""
    tensors = [tensor for tensor in checkpoint.tensors.values() if not BUFFER.search(tensor.name)]
    tied = checkpoint.config.get("tie_word_embeddings", False) and any(TOKEN_TABLE.search(t.name) for t in tensors)
    return [tensor for tensor in tensors if not (tied and HEAD.search(tensor.name))]


def outlooks(tensors: Sequence[StoredTensor]) -> Outlooks:
    """What the precision as-is makes of a decoder's parameters; reads no data."""
    tied = not any(HEAD.search(tensor.name) for tensor in tensors)
    return {tensor.name: outlook(tensor, _use(tensor, tied)) for tensor in tensors}


def _use(tensor: StoredTensor, tied: bool) -> Use:
    if EXPERTS.search(tensor.name) and len(tensor.shape) > 1 and not tensor.name.endswith("bias"):
        return Use.EXPERTS
    if len(tensor.shape) != 2 or tensor.name.endswith("bias") or ROUTER.search(tensor.name):
        return Use.VALUE
    if TOKEN_TABLE.search(tensor.name):
        return Use.TIED if tied else Use.LOOKUP
    return Use.LOOKUP if OTHER_TABLE.search(tensor.name) else Use.PRODUCT


def is_lookup(tensor: StoredTensor, tied: bool) -> bool:
    """Whether single rows of a tensor are looked up, and nothing is multiplied with it; `tied`: the head is a table."""
    table = OTHER_TABLE if tied else TABLE
    return table.search(tensor.name) is not None


def has_experts(tensors: Iterable[StoredTensor]) -> bool:
    """Whether a model is a mixture of experts, by the names of its tensors."""
    return any(EXPERTS.search(tensor.name) for tensor in tensors)


def storage_groups(tensors: Iterable[StoredTensor], becoming: Outlooks) -> tuple[StorageGroup, ...]:
    """How the tensors are stored and what becomes of them, the largest group first."""
    alike: dict[tuple[str, str, str], list[StoredTensor]] = defaultdict(list)
    for tensor in tensors:
        future = becoming.get(tensor.name)
        alike[pattern_of(tensor.name), tensor.stored_as, future.words if future else ""].append(tensor)
    found = (_group(*key, members, becoming) for key, members in alike.items())
    return tuple(sorted(found, key=lambda group: (-group.nbytes, group.pattern, group.stored_as)))


def _group(
    pattern: str, stored_as: str, becomes: str, members: Sequence[StoredTensor], becoming: Outlooks
) -> StorageGroup:
    return StorageGroup(
        pattern=pattern,
        stored_as=stored_as,
        tensors=len(members),
        weights=sum(tensor.size for tensor in members),
        nbytes=sum(tensor.nbytes for tensor in members),
        group_size=_group_size(members[0]),
        is_float=stored_as in FLOAT_NAMES,
        becomes=becomes,
        as_is_bytes=sum(becoming[tensor.name].disk for tensor in members) if becomes else None,
    )


def _group_size(tensor: StoredTensor) -> int | None:
    matrix = tensor.matrices or tensor
    if matrix.encoding is None:
        return None
    return matrix.encoding.group if matrix.encoding.group < matrix.shape[-1] else WHOLE_ROW


def left_in_float(tensors: Sequence[StoredTensor]) -> tuple[str, ...]:
    """The modules whose matrices are floats, with `*` for the layer where that holds for every layer."""
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1 and not tensor.name.endswith("bias")]
    quantized = {pattern_of(tensor.name) for tensor in matrices if tensor.stored_as not in FLOAT_NAMES}
    floats = [tensor.name for tensor in matrices if tensor.stored_as in FLOAT_NAMES]
    names = (name if pattern_of(name) in quantized else pattern_of(name) for name in floats)
    return tuple(dict.fromkeys(name.removesuffix(".weight") for name in names))


def pattern_of(name: str) -> str:
    """A tensor's name with `*` for numbers."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
