"""GGUF tensor names → transformers parameter names, and what the converter did to the values on the way.

llama.cpp's converter renames every parameter, and changes some: it adds one to norm weights that the model applies as
`1 + weight`, reorders the rows of query and key projections for its own rotary layout, transposes GPT-2's matrices and
splits GPT-NeoX's interleaved attention matrix. A `Naming` states both for one `general.architecture`.

Facts from llama.cpp's conversion scripts and the gguf package's `tensor_mapping`; each naming is compared with the
parameters of the transformers class in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from truecast.checkpoint.gguf_rewrites import Rewrite
from truecast.errors import InputError


@dataclass(frozen=True)
class Target:
    """Where one GGUF tensor goes: the parameter's `name` in transformers, and the `rewrite` to undo."""

    name: str
    rewrite: Rewrite


@dataclass(frozen=True)
class Naming:
    """How one architecture's tensors are named.

    `globals` maps the stems outside the blocks, `leaves` the stems within a block, to module paths; `blocks` is the
    path of the list of blocks. `rewrites` maps a GGUF stem to the rewrite of its weight (and its bias, for rows).
    """

    leaves: Mapping[str, str]
    globals: Mapping[str, str] = field(
        default_factory=lambda: {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    )
    blocks: str = "model.layers"
    rewrites: Mapping[str, Rewrite] = field(default_factory=dict)


IGNORED = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
"""Rotary frequency factors: part of the configuration in transformers, not parameters."""

_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_PLAIN_MLP = {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_GATED_MLP = {"ffn_gate": "mlp.gate_proj", **_PLAIN_MLP}
_PRE_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_SANDWICH_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ROTARY_ROWS = {"attn_q": Rewrite.HEAD_ROWS, "attn_k": Rewrite.HEAD_ROWS}

_LLAMA = {**_PRE_NORMS, **_ATTENTION, **_GATED_MLP}
_GEMMA2 = {**_SANDWICH_NORMS, **_ATTENTION, **_GATED_MLP}


def _plus_one(*stems: str) -> dict[str, Rewrite]:
    return dict.fromkeys(("output_norm", *stems), Rewrite.PLUS_ONE)


NAMINGS: Mapping[str, Naming] = {
    "arcee": Naming({**_PRE_NORMS, **_ATTENTION, **_PLAIN_MLP}, rewrites=_ROTARY_ROWS),
    "cohere2": Naming({"attn_norm": "input_layernorm", **_ATTENTION, **_GATED_MLP}),
    "command-r": Naming({"attn_norm": "input_layernorm", **_ATTENTION, **_GATED_MLP, **_QK_NORMS}),
    "gemma": Naming(_LLAMA, rewrites=_plus_one("attn_norm", "ffn_norm")),
    "gemma2": Naming(_GEMMA2, rewrites=_plus_one(*_SANDWICH_NORMS)),
    "gemma3": Naming({**_GEMMA2, **_QK_NORMS}, rewrites=_plus_one(*_SANDWICH_NORMS, *_QK_NORMS)),
    "gpt2": Naming(
        {
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        {
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        "transformer.h",
        dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), Rewrite.TRANSPOSED),
    ),
    "gptneox": Naming(
        {
            **_PRE_NORMS,
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        {"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "lm_head"},
        "gpt_neox.layers",
        {"attn_qkv": Rewrite.FUSED_HEADS},
    ),
    "granite": Naming(_LLAMA, rewrites=_ROTARY_ROWS),
    "llama": Naming(_LLAMA, rewrites=_ROTARY_ROWS),
    "nemotron": Naming(
        {**_PRE_NORMS, **_ATTENTION, **_PLAIN_MLP},
        rewrites=_plus_one("attn_norm", "ffn_norm"),
    ),
    "olmo": Naming({**_ATTENTION, **_GATED_MLP}, rewrites=_ROTARY_ROWS),
    "olmo2": Naming({**_POST_NORMS, **_ATTENTION, **_GATED_MLP, **_QK_NORMS}),
    "phi2": Naming(
        {
            "attn_norm": "input_layernorm",
            **_ATTENTION,
            "attn_output": "self_attn.dense",
            "ffn_up": "mlp.fc1",
            "ffn_down": "mlp.fc2",
        },
        {"token_embd": "model.embed_tokens", "output_norm": "model.final_layernorm", "output": "lm_head"},
    ),
    "phi3": Naming(
        {
            **_PRE_NORMS,
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        }
    ),
    "qwen2": Naming(_LLAMA),
    "qwen3": Naming({**_LLAMA, **_QK_NORMS}),
    "smollm3": Naming(_LLAMA, rewrites=_ROTARY_ROWS),
    "stablelm": Naming(_LLAMA),
    "starcoder2": Naming({**_PRE_NORMS, **_ATTENTION, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}),
}


def target_of(path: Path, architecture: str, gguf_name: str) -> Target | None:
    """Where the tensor `gguf_name` of an `architecture` goes in transformers; None when it is no parameter there.

    Args:
        path: the file, for the error's sentence.
        architecture: a key of `NAMINGS`.
        gguf_name: a name like `blk.3.attn_q.weight`.

    Raises:
        InputError: the architecture has no tensor of that name.
    """
    if gguf_name in IGNORED:
        return None
    naming = NAMINGS[architecture]
    stem, _, suffix = gguf_name.rpartition(".")
    place = _place(naming, stem)
    if place is None or suffix not in {"weight", "bias"}:
        raise InputError(
            f"{path} holds the tensor {gguf_name}, which is not known for the architecture {architecture}; "
            "convert the original Hugging Face folder instead."
        )
    module, leaf = place
    return Target(f"{module}.{suffix}", _rewrite(naming, leaf, suffix))


def _place(naming: Naming, stem: str) -> tuple[str, str] | None:
    """The module path and the bare GGUF stem."""
    if stem in naming.globals:
        return naming.globals[stem], stem
    block, _, rest = stem.removeprefix("blk.").partition(".")
    if stem.startswith("blk.") and block.isdecimal() and rest in naming.leaves:
        return f"{naming.blocks}.{block}.{naming.leaves[rest]}", rest
    return None


def _rewrite(naming: Naming, leaf: str, suffix: str) -> Rewrite:
    rewrite = naming.rewrites.get(leaf, Rewrite.NONE)
    reorders_rows = rewrite in {Rewrite.HEAD_ROWS, Rewrite.FUSED_HEADS}
    return rewrite if suffix == "weight" or reorders_rows else Rewrite.NONE
