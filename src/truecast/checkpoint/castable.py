"""Whether a checkpoint can be cast, decided before any work: export asks here, and so does inspection.

Data flow: config.json and the names of tensors, beside the text of transformers' own source (its tables of classes and
the file of the model's author) → the first obstacle, or none. Nothing is imported and nothing runs: it takes 0.1 s.
What only a trace can tell is left to the trace.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from truecast.checkpoint.authors import CAUSAL, ENCODER_DECODERS, PICTURES, Library
from truecast.checkpoint.model import Checkpoint
from truecast.checkpoint.tasks import GENERATION
from truecast.errors import InputError

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""Settings that are whole numbers above zero wherever they are there."""
DTYPES = frozenset({"float32", "float16", "bfloat16", "float64", "float", "half", "double", "auto"})
FEW_LAYERS = 256
"""Layers that any model may have, whatever its number of tensors: some use the weights of one layer in many."""
SENSES = re.compile(r"^(vision|image|audio|speech|video|vq)\w*_(config|encoder)$")
"""Settings of the parts of a model that see or hear."""
EXPERTS = re.compile(r"(^|\.)experts\.(\d+\.)*\w+(\.weight)?$")
"""Weights of experts: of one, by its number, or of all of a layer."""
CROSS = re.compile(r"(^|\.)(encoder_attn|crossattention|cross_attn|EncDecAttention|encoder_decoder_attention)\.")
"""Weights of a decoder's attention to an encoder, by the names that authors give it."""
RECURRENT = re.compile(r"_is_stateful = True|\.update_(conv|recurrent)_state\(")
SCANS = re.compile(r"\breturn_(last_state|final_states): bool")
"""An argument of selective scans, which can be cast (see `dialects.scan`)."""
INDEXED = re.compile(r"\.update_indexer\(|store_compression_weights")
OWN_CACHE = re.compile(r"^class \w+Cache\(", re.MULTILINE)
COMPLEX = re.compile(r"torch\.(view_as_complex|polar)\(")
PLAIN_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Kinds of layers, in transformers' words, that keep keys and values only."""


def require_castable(checkpoint: Checkpoint, task: str) -> None:
    """Raises InputError with the first obstacle to casting the checkpoint for `task`."""
    if (found := obstacle(checkpoint, task)) is not None:
        raise InputError(f"{checkpoint.path} cannot be cast for {task}: {found}.")


def obstacle(checkpoint: Checkpoint, task: str) -> str | None:
    """The first obstacle to casting the checkpoint for `task`, and what to do about it; None where there is none."""
    return next(_obstacles(checkpoint, task), None)


def recurs(checkpoint: Checkpoint) -> bool:
    """Whether layers carry more than keys and values, as far as the author's file tells."""
    library, kind = Library(), str(checkpoint.config.get("model_type"))
    name = library.table(CAUSAL).get(kind) if library.knows(kind) else None
    return name is not None and _recurs(library.source_of(kind, name), checkpoint.config)


def _recurs(source: str, config: Mapping[str, Any]) -> bool:
    kinds = config.get("layer_types")
    plain = isinstance(kinds, list) and PLAIN_LAYERS.issuperset(kinds)
    return RECURRENT.search(source) is not None and not plain


def _obstacles(checkpoint: Checkpoint, task: str) -> Iterator[str]:
    library = Library()
    if not checkpoint.tensors:
        yield "its files hold no tensors; download or save it again"
    yield from _wrong_settings(checkpoint, task, library)
    kind = str(checkpoint.config.get("model_type"))
    if "auto_map" in checkpoint.config:  # its author's code comes along, and is not read
        return
    if not library.knows(kind):
        yield f"the model type {kind!r} is unknown to this version of transformers; update transformers"
    expert = next((name for name in checkpoint.tensors if EXPERTS.search(name)), None)
    if task != GENERATION and expert is not None:
        yield (
            f"it is a mixture of experts ({expert}) without a cache, and so far experts are cast in decoders only, for "
            "text generation; choose another model"
        )
    if task == GENERATION:
        yield from _missing_mechanisms(checkpoint, kind, library)


def _wrong_settings(checkpoint: Checkpoint, task: str, library: Library) -> Iterator[str]:
    config = checkpoint.config
    for name, value in config.items():
        if name.endswith("_config") and not isinstance(value, Mapping | None):
            yield f"config.json says {name} is {value!r}, which is no object; correct it"
    nested = config.get("text_config")
    text: Mapping[str, Any] = {**config, **nested} if isinstance(nested, Mapping) else config
    largest = max((tensor.size for tensor in checkpoint.tensors.values()), default=0)
    layers = max(FEW_LAYERS, len(checkpoint.tensors))
    measured = text if task == GENERATION else config  # what sees may come without the part that reads
    for name in SIZES:
        value = text.get(name, 1)
        if isinstance(value, list):  # one for each layer
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield f"config.json says {name} is {value!r}, which is no whole number above zero; correct it"
        elif name in measured and value > (layers if name == "num_hidden_layers" else largest):
            yield f"config.json says {name} is {value}, for which its tensors are too few or too small; correct it"
    for name in ("dtype", "torch_dtype"):
        if isinstance(dtype := config.get(name), str) and dtype.removeprefix("torch.") not in DTYPES:
            yield f"config.json says {name} is {dtype!r}, which is no type of weights; correct it"
    act = text.get("hidden_act")
    if isinstance(act, str) and not library.has_word("activations.py", act):
        yield f"config.json says hidden_act is {act!r}, which transformers does not know; correct it"
    yield from _wrong_rotary(text, library)


def _wrong_rotary(text: Mapping[str, Any], library: Library) -> Iterator[str]:
    for name in ("rope_parameters", "rope_scaling"):
        rope = text.get(name)
        if not isinstance(rope, Mapping):
            continue
        theta, kind = rope.get("rope_theta", 1.0), rope.get("rope_type", rope.get("type"))
        if not isinstance(theta, int | float):
            yield f"config.json says rope_theta is {theta!r}, which is no number; correct it"
        file = "modeling_rope_utils.py"
        if isinstance(kind, str) and kind not in ("su", "mrope") and not library.has_word(file, kind):
            yield f"config.json says rope_type is {kind!r}, which transformers does not know; correct it"


def _missing_mechanisms(checkpoint: Checkpoint, kind: str, library: Library) -> Iterator[str]:
    """What a decoder may need and this version lacks, the most telling first."""
    config = checkpoint.config
    if kind in library.table(PICTURES) or any(SENSES.match(k) and isinstance(v, Mapping) for k, v in config.items()):
        yield (
            "it takes pictures or sound beside text, and models of several linked graphs cannot be cast yet; "
            "save its text model as a checkpoint of its own"
        )
    cross = next((name for name in checkpoint.tensors if CROSS.search(name)), None)
    tables = (library.table(name) for name in ENCODER_DECODERS)
    if config.get("is_encoder_decoder") is True or cross is not None or any(kind in table for table in tables):
        yield (
            f"its decoder attends to an encoder{f' ({cross})' if cross else ''}, and encoder-decoders cannot be cast "
            "yet; its encoder alone can be, from a checkpoint of its own with --task feature-extraction"
        )
    name = library.table(CAUSAL).get(kind)
    if name is None:
        yield f"transformers has no language model of type {kind!r}; choose another --task"
        return
    yield from _missing_states(library.source_of(kind, name), config)


def _missing_states(source: str, config: Mapping[str, Any]) -> Iterator[str]:
    """What the author's file says that layers keep, and compute with, beside keys and values."""
    later = "which cannot be cast yet"
    if _recurs(source, config) and ".update_recurrent_state(" in source and not SCANS.search(source):
        yield f"its layers keep convolution or recurrent states from token to token, {later}; choose another model"
    if INDEXED.search(source):
        yield f"its layers keep an index of their keys, {later}; choose another model"
    if OWN_CACHE.search(source):
        yield f"it keeps a cache of its own kind, {later}; choose another model"
    if COMPLEX.search(source):
        yield f"its positions are complex numbers, which ONNX has no type for and {later}; choose another model"
    if source and not any(name in source for name in ("past_key_values", "cache_params")):
        yield f"it keeps no keys and values from token to token, {later}; choose another model"
