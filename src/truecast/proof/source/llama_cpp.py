"""What a GGUF file says of positions, norms and scales, by the rules of llama.cpp's loader, against the author's model.

The rules are those of https://github.com/ggml-org/llama.cpp: `load_hparams` of src/llama-model.cpp and, for one
architecture, `load_arch_hparams` of its file in src/models, where the last column names no other.

| fact | metadata, behind `{architecture}.` | without it | source |
|---|---|---|---|
| heads | `attention.head_count`, `_kv` | as many keys as queries | |
| width of a head | `attention.key_length` | embedding / heads | |
| epsilon | `attention.layer_norm_rms_epsilon`, `.layer_norm_epsilon` | 1e-5, torch's own | |
| rotary base | `rope.freq_base`, `rope.freq_base_swa` | 10000; the same but in Gemma 3 | models/gemma3.cpp |
| rotary scaling | `rope.scaling.type` | linear | |
| its factor | `rope.scaling.factor`, older: `rope.scale_linear` | 1, which 0 means too | |
| its magnitude | `rope.scaling.attn_factor`, `.yarn_log_multiplier` | 1 | src/llama-context.cpp |
| YaRN | `rope.scaling.yarn_beta_fast`, `_slow` | 32, 1 | ggml-cpu/ops.cpp, `rope_yarn` |
| its context | `rope.scaling.original_context_length` | the whole | |
| frequencies | tensors `rope_freqs`, `rope_factors_short`, `_long` | undivided | `get_rope_factors` |
| window | `attention.sliding_window` | `WINDOW` | |
| its layers | `attention.sliding_window_pattern` | `PERIODS` | llama-hparams.cpp, `set_swa_pattern` |
| scale of attention | `attention.scale` | 1 / √width, but see `WIDE` | models/gemma2.cpp, gemma3.cpp |
| the rest | `FACTS` | `Fact.default` | |
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from truecast.proof.operators import Array
from truecast.proof.source.gguf_file import GgufFile

Values = Mapping[str, Any]
"""What llama.cpp takes where a file states nothing, by architecture; "" is every other one."""

BASE = 10_000.0
LOCAL_BASE = {"gemma3": BASE}
PLAIN_LOCALLY = frozenset({"gemma3", "olmo2"})
"""Layers with a window have no scaling: `rope_freq_scale_train_swa` is 1."""
UNROUNDED = frozenset({"gpt-oss"})
"""YaRN's bounds are not whole pairs in the author's model: `truncate` in config.json of openai/gpt-oss-20b."""
PERIODS = {"gemma2": 2, "gemma3": 6, "cohere2": 4, "olmo2": 4, "exaone4": 4, "gpt-oss": 2}
"""All layers but every n-th have the window; of other architectures, as converted from config.json, all have."""
WINDOW = {"gemma2": 4096}
WIDE = {"gemma2": 46, "gemma3": 62}
"""Layers of the models of 27 B, whose attention is scaled by 1 / √(embedding / heads)."""
NO_ROTATION = {"smollm3": 4}
"""Every n-th layer has no positions: `n_no_rope_layer_step`."""
EPSILON = 1e-5
CLOSE = 1e-5
"""Relative distance of angles and scales: powers, cosines and sines of float32 from one library to another."""


@dataclass(frozen=True)
class Fact:
    """One number: the key of the metadata, the attributes of the configuration that may hold it, and the default.

    The default of "" is also what a model does whose configuration has none of the attributes.
    """

    key: str
    names: tuple[str, ...]
    default: Values

    def stated(self, file: GgufFile) -> float:
        """As llama.cpp has it, to which 0 is no number but the default."""
        value = file.get(self.key)
        if value is None or (value == 0 and not isinstance(value, bool)):
            return self._without(file, file.architecture)
        return float(value)

    def held(self, config: Any, file: GgufFile) -> float:
        """As the author's model has it."""
        found = (_attribute(config, name) for name in self.names)
        value = next((value for value in found if value is not None), None)
        return self._without(file, "") if value is None else float(value)

    def _without(self, file: GgufFile, architecture: str) -> float:
        value = self.default.get(architecture, self.default[""])
        return float(value(file) if callable(value) else value)


def _has_one_norm(file: GgufFile) -> bool:
    """models/stablelm.cpp: without a norm of its own, the feed-forward network is beside the attention."""
    return "blk.0.ffn_norm.weight" not in file.tensors


FACTS = (
    Fact("block_count", ("num_hidden_layers",), {"": 0}),
    Fact("embedding_length", ("hidden_size",), {"": 0}),
    Fact("attention.head_count", ("num_attention_heads",), {"": 0}),
    Fact("attention.head_count_kv", ("num_key_value_heads", "num_kv_heads"), {"": lambda file: file.heads[1]}),
    Fact("context_length", ("max_position_embeddings", "max_seq_len", "seq_length"), {"": 0}),
    Fact("attn_logit_softcapping", ("attn_logit_softcapping",), {"": 0, "gemma2": 50}),
    Fact("final_logit_softcapping", ("final_logit_softcapping",), {"": 0, "gemma2": 30}),
    Fact("logit_scale", ("logits_scaling", "logit_scale"), {"": 1}),
    Fact("embedding_scale", ("embedding_multiplier",), {"": 1}),
    Fact("residual_scale", ("residual_multiplier",), {"": 1}),
    Fact("attention.clamp_kqv", ("clip_qkv", "attn_config.clip_qkv"), {"": 0}),
    Fact("attention.max_alibi_bias", ("attn_config.alibi_bias_max",), {"": 0}),
    Fact("attention.temperature_scale", ("rope_parameters.llama_4_scaling_beta",), {"": 0}),
    Fact("use_parallel_residual", ("use_parallel_residual",), {"": 1, "stablelm": _has_one_norm}),
    Fact("expert_count", ("num_experts", "num_local_experts"), {"": 0}),
    Fact("expert_used_count", ("num_experts_per_tok",), {"": 0}),
    Fact("expert_weights_scale", ("routed_scaling_factor",), {"": 1}),
    Fact("expert_weights_norm", ("norm_topk_prob",), {"": 1, "qwen2moe": 0, "olmoe": 0}),
)


def fact_faults(model: nn.Module, file: GgufFile) -> Iterator[str]:
    """A sentence for each fact that the author's model, a pretrained one, does not have as the file states it."""
    config: Any = model.config
    for fact in FACTS:
        stated, held = fact.stated(file), fact.held(config, file)
        if np.float32(stated) != np.float32(held):
            yield f"{fact.key} is {stated:g} in the file and {held:g} in the model"
    yield from _attention_faults(model, file)
    yield from _epsilon_faults(model, file)
    yield from _window_faults(config, file)
    yield from _rotation_faults(model, file)


def _attribute(config: Any, name: str) -> Any:
    """The attribute of a dotted name, in objects and in mappings."""
    for part in name.split("."):
        config = config.get(part) if isinstance(config, Mapping) else getattr(config, part, None)
    return config


def _width(file: GgufFile) -> int:
    return int(file.get("attention.key_length", int(file.get("embedding_length")) // file.heads[0]))


def _scale(file: GgufFile) -> float:
    """What products of queries and keys are multiplied by."""
    wide = WIDE.get(file.architecture) == file.get("block_count")
    width = int(file.get("embedding_length")) // file.heads[0] if wide else _width(file)
    return float(file.get("attention.scale", 0) or 1 / math.sqrt(width))


def _attention_faults(model: nn.Module, file: GgufFile) -> Iterator[str]:
    """The width of a head and the scale of the attention, as far as the author's modules have them as numbers."""
    wanted = {"head_dim": float(_width(file)), "scaling": _scale(file)}
    for name, module in model.named_modules():
        for attribute, value in wanted.items() if type(module).__name__.endswith("Attention") else ():
            held = getattr(module, attribute, None)
            if isinstance(held, int | float) and not math.isclose(held, value, rel_tol=CLOSE):
                yield f"{name}.{attribute} is {held:g}, which is {value:g} by the file"


def _epsilon_faults(model: nn.Module, file: GgufFile) -> Iterator[str]:
    stated = [file.get(f"attention.layer_norm_{kind}epsilon") for kind in ("rms_", "")]
    wanted = next((value for value in stated if value is not None), EPSILON)
    for name, module in model.named_modules():
        if "norm" in type(module).__name__.lower():
            found = (getattr(module, attribute, None) for attribute in ("variance_epsilon", "eps", "epsilon"))
            held = next((value for value in found if isinstance(value, float)), EPSILON)
            if np.float32(held) != np.float32(wanted):
                yield f"{name} has the epsilon {held:g}, which is {wanted:g} in the file"


def _window_faults(config: Any, file: GgufFile) -> Iterator[str]:
    """The window, and which layers have it."""
    wanted, held = _windows(file), _held_windows(config)
    for layer, (stated, window) in enumerate(zip(wanted, held, strict=False)):
        if stated != window:
            yield f"layer {layer} attends to {window or 'all'} positions, which are {stated or 'all'} by the file"
    every = NO_ROTATION.get(file.architecture)
    if every and list(config.no_rope_layers) != [int(layer % every != 0) for layer in range(1, len(wanted) + 1)]:
        yield f"no_rope_layers is {config.no_rope_layers}, and every {every}th layer has no positions"


def _windows(file: GgufFile) -> list[int]:
    """The window of each layer; 0 where it has none."""
    layers = int(file.get("block_count"))
    window = int(file.get("attention.sliding_window", WINDOW.get(file.architecture, 0)))
    pattern = file.get("attention.sliding_window_pattern", PERIODS.get(file.architecture, 0))
    if not isinstance(pattern, list):
        pattern = [not pattern or layer % pattern < pattern - 1 for layer in range(layers)]
    return [window if slides else 0 for slides in pattern]


def _held_windows(config: Any) -> list[int]:
    window = 0 if getattr(config, "use_sliding_window", True) is False else getattr(config, "sliding_window", None) or 0
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else 0 for kind in kinds]


def _rotation_faults(model: nn.Module, file: GgufFile) -> Iterator[str]:
    """The angles by which a position turns each pair, and their magnitude, in short and in long texts."""
    context = int(file.get("context_length"))
    ends = (1, int(file.get("rope.scaling.original_context_length", context)) + 2)
    for name, module in model.named_modules():
        kinds = getattr(module, "rope_type", None)
        for kind in kinds if isinstance(kinds, dict) else [None] if isinstance(kinds, str) else []:
            local = [kind == "sliding_attention"] if kind else [False, True] if any(_windows(file)) else [False]
            for end, is_local in ((end, is_local) for end in ends if end <= max(context, 1) for is_local in local):
                wanted, held = _turns(file, is_local, end > 1), _held_turns(module, kind, end)
                if wanted.shape != held.shape or not np.allclose(held, wanted, rtol=CLOSE, atol=0):
                    yield f"{name} turns {_where(kind, end)} by other angles than the file says"


def _where(kind: str | None, end: int) -> str:
    return f"texts of {end} positions" + (f" in layers of {kind}" if kind else "")


@torch.no_grad()
def _held_turns(module: nn.Module, kind: str | None, end: int) -> Array:
    """Angles and magnitudes of the pairs at position 1 of a text of `end` positions: [2, pairs], the greatest first."""
    positions = torch.tensor([[1, end]])
    cosines, sines = module(torch.zeros(1, 1, 1), positions, **({"layer_type": kind} if kind else {}))
    x, y = (table[0, 0].double().numpy() for table in (cosines, sines))
    angles, sizes = np.arctan2(y, x), np.hypot(x, y)
    order = np.argsort(-angles, kind="stable")[:: 2 if _is_doubled(angles) else 1]
    return np.stack([angles[order], sizes[order]])


def _is_doubled(angles: Array) -> bool:
    """Whether a table has both channels of a pair."""
    ordered = np.sort(angles)
    return len(angles) % 2 == 0 and bool(np.array_equal(ordered[::2], ordered[1::2]))


def _turns(file: GgufFile, is_local: bool, is_long: bool) -> Array:
    """The same by the file."""
    base = float(file.get("rope.freq_base", BASE))
    plain = is_local and file.architecture in PLAIN_LOCALLY
    if is_local:
        base = float(file.get("rope.freq_base_swa", LOCAL_BASE.get(file.architecture, base)))
    pairs = int(file.get("rope.dimension_count", _width(file))) // 2
    angles = base ** (-np.arange(pairs) / pairs)
    if plain:
        return np.stack([angles, np.ones(pairs)])
    kind = file.get("rope.scaling.type", "linear")
    factor = float(file.get("rope.scaling.factor", file.get("rope.scale_linear", 0)) or 1)
    size = float(file.get("rope.scaling.attn_factor", 1))
    if kind == "yarn":
        kept = _kept(file, base, pairs)
        angles = angles * kept + angles / factor * (1 - kept)
        size *= _temperature(file, factor)
    elif kind != "none":
        angles = angles / factor
    angles = angles / _divisors(file, is_long)
    return np.stack([-np.sort(-angles), np.full(pairs, size)])


def _divisors(file: GgufFile, is_long: bool) -> Any:
    """What each pair's angle is divided by."""
    names = ("rope_freqs.weight", f"rope_factors_{'long' if is_long else 'short'}.weight")
    return next((file.read(name).astype(np.float64) for name in names if name in file.tensors), 1.0)


def _kept(file: GgufFile, base: float, pairs: int) -> Array:
    """How much of each pair's angle YaRN keeps: `ggml_rope_yarn_corr_dims` and `rope_yarn_ramp`."""
    context = float(file.get("rope.scaling.original_context_length", file.get("context_length")))
    betas = (float(file.get("rope.scaling.yarn_beta_fast", 32)), float(file.get("rope.scaling.yarn_beta_slow", 1)))
    low, high = (pairs * math.log(context / (beta * 2 * math.pi)) / math.log(base) for beta in betas)
    if file.architecture not in UNROUNDED:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(0.0, low), min(2.0 * pairs - 1, high)
    kept: Array = 1 - np.clip((np.arange(pairs) - low) / max(0.001, high - low), 0, 1)
    return kept


def _temperature(file: GgufFile, factor: float) -> float:
    """YaRN's magnitude, which a multiplier of its logarithm divides."""
    multiplier = float(file.get("rope.scaling.yarn_log_multiplier", 0))
    own = 1 + 0.1 * math.log(factor) if factor > 1 else 1.0
    below = 1 + 0.1 * multiplier * math.log(factor) if factor > 1 else 1.0
    return own / below if multiplier else own
