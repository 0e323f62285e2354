"""GGUF tensor names → transformers parameter names, and what the converter did to the values on the way.

llama.cpp's converter renames every parameter, and changes some: it adds one to norm weights that the model applies as
`1 + weight`, reorders the rows of query and key projections for its own rotary layout, transposes GPT-2's matrices and
splits GPT-NeoX's interleaved attention matrix. A `Naming` states both for one `general.architecture`.

Facts from llama.cpp's conversion scripts and the gguf package's `tensor_mapping`; each naming is compared with the
parameters of the transformers class in the tests.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from truecast.checkpoint.gguf.rewrites import Rewrite
from truecast.errors import InputError

PER_ROW = "{}"
"""Stands in a module path for the number of a row, where each row of a tensor is a parameter of its own."""


@dataclass(frozen=True)
class Target:
    """Where one GGUF tensor goes in transformers, and the `rewrite` to undo.

    names: of the parameters; several share the rows of one tensor, which are those of queries, keys and values. A name
    with `PER_ROW` in it stands for as many parameters as the tensor has rows.
    """

    names: tuple[str, ...]
    rewrite: Rewrite


@dataclass(frozen=True)
class Naming:
    """How one architecture's tensors are named.

    `globals` maps the stems outside the blocks, `leaves` the stems within a block, to module paths; `blocks` is the
    path of the list of blocks. `rewrites` maps a GGUF stem to the rewrite of its weight (and its bias, for rows).
    `numbers` maps metadata of one number per block to the parameter it is in transformers, with its shape. `variants`
    are the namings of files that hold the tensor given. The path of a stem in `bare` is the parameter's whole name.
    `turned` says that transformers has the experts as [in, out], gate and up taking turns (`interleaved`).
    """

    leaves: Mapping[str, str | tuple[str, ...]]
    globals: Mapping[str, str] = field(
        default_factory=lambda: {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    )
    blocks: str = "model.layers"
    rewrites: Mapping[str, Rewrite] = field(default_factory=dict)
    numbers: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    variants: Mapping[str, Naming] = field(default_factory=dict)
    bare: frozenset[str] = frozenset()
    turned: bool = False


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
_FUSED_QKV = {"attn_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")}
_FUSED_GATE = {"ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    **{f"ffn_{part}_exps": f"mlp.experts.{PER_ROW}.{part}_proj" for part in ("gate", "up", "down")},
}
"""The router, and the matrices of the experts: a row of the tensor each."""
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    **{f"ffn_{part}_shexp": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")},
}
_MIXTRAL_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": f"mlp.experts.{PER_ROW}.w1",
    "ffn_up_exps": f"mlp.experts.{PER_ROW}.w3",
    "ffn_down_exps": f"mlp.experts.{PER_ROW}.w2",
}
_ROTARY_ROWS = {"attn_q": Rewrite.HEAD_ROWS, "attn_k": Rewrite.HEAD_ROWS}

_LLAMA = {**_PRE_NORMS, **_ATTENTION, **_GATED_MLP}
_GEMMA2 = {**_SANDWICH_NORMS, **_ATTENTION, **_GATED_MLP}


_GPT2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GPT2_GLOBALS = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_BLOOM = {
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
_BLOOM_GLOBALS = {
    "token_embd": "transformer.word_embeddings",
    "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_FUSED_ROWS = {"attn_qkv": Rewrite.FUSED_HEADS}


def _plus_one(*stems: str) -> dict[str, Rewrite]:
    return dict.fromkeys(("output_norm", *stems), Rewrite.PLUS_ONE)


NAMINGS: Mapping[str, Naming] = {
    "apertus": Naming(
        {
            **_ATTENTION,
            **_QK_NORMS,
            **_PLAIN_MLP,
            "attn_norm": "attention_layernorm",
            "ffn_norm": "feedforward_layernorm",
        },
        numbers={
            "xielu.alpha_p": ("mlp.act_fn.alpha_p", (1,)),
            "xielu.alpha_n": ("mlp.act_fn.alpha_n", (1,)),
            "xielu.beta": ("mlp.act_fn.beta", ()),
            "xielu.eps": ("mlp.act_fn.eps", ()),
        },
    ),
    "arcee": Naming({**_PRE_NORMS, **_ATTENTION, **_PLAIN_MLP}, rewrites=_ROTARY_ROWS),
    "bloom": Naming({**_PRE_NORMS, **_BLOOM}, _BLOOM_GLOBALS, "transformer.h", _FUSED_ROWS),
    "chatglm": Naming({**_PRE_NORMS, **_ATTENTION, **_FUSED_QKV, **_FUSED_GATE}),
    "cohere2": Naming({"attn_norm": "input_layernorm", **_ATTENTION, **_GATED_MLP}),
    "command-r": Naming({"attn_norm": "input_layernorm", **_ATTENTION, **_GATED_MLP, **_QK_NORMS}),
    "ernie4_5": Naming(_LLAMA),
    "exaone4": Naming({**_POST_NORMS, **_ATTENTION, **_GATED_MLP, **_QK_NORMS}),
    "falcon": Naming(
        {"attn_norm": "input_layernorm", **_BLOOM},
        _BLOOM_GLOBALS,
        "transformer.h",
        _FUSED_ROWS,
        variants={
            "blk.0.attn_norm_2.weight": Naming(
                {"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn", **_BLOOM},
                _BLOOM_GLOBALS,
                "transformer.h",
                _FUSED_ROWS,
            )
        },
    ),
    "gemma": Naming(_LLAMA, rewrites=_plus_one("attn_norm", "ffn_norm")),
    "gemma2": Naming(_GEMMA2, rewrites=_plus_one(*_SANDWICH_NORMS)),
    "gemma3": Naming({**_GEMMA2, **_QK_NORMS}, rewrites=_plus_one(*_SANDWICH_NORMS, *_QK_NORMS)),
    "glm4": Naming(
        {
            **_PRE_NORMS,
            "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
            **_ATTENTION,
            **_FUSED_QKV,
            **_FUSED_GATE,
        }
    ),
    "gpt-oss": Naming(
        {
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            **_ATTENTION,
            "attn_sinks": "self_attn.sinks",
            **_EXPERTS,
            "ffn_gate_inp": "mlp.router",
        },
        bare=frozenset({"attn_sinks"}),
        turned=True,
    ),
    "gpt2": Naming(
        _GPT2,
        _GPT2_GLOBALS,
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
        _FUSED_ROWS,
    ),
    "granite": Naming(_LLAMA, rewrites=_ROTARY_ROWS),
    "hunyuan-dense": Naming(
        {**_LLAMA, "attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}
    ),
    "llama": Naming(
        _LLAMA,
        rewrites=_ROTARY_ROWS,
        variants={
            "blk.0.ffn_gate_exps.weight": Naming(
                {**_PRE_NORMS, **_ATTENTION, **_MIXTRAL_EXPERTS}, rewrites=_ROTARY_ROWS
            )
        },
    ),
    "mistral3": Naming(_LLAMA, rewrites=_ROTARY_ROWS),
    "mpt": Naming(
        {
            "attn_norm": "norm_1",
            "attn_qkv": "attn.Wqkv",
            "attn_output": "attn.out_proj",
            "ffn_norm": "norm_2",
            "ffn_up": "ffn.up_proj",
            "ffn_down": "ffn.down_proj",
        },
        {"token_embd": "transformer.wte", "output_norm": "transformer.norm_f", "output": "lm_head"},
        "transformer.blocks",
    ),
    "nemotron": Naming(
        {**_PRE_NORMS, **_ATTENTION, **_PLAIN_MLP},
        rewrites=_plus_one("attn_norm", "ffn_norm"),
    ),
    "olmo": Naming({**_ATTENTION, **_GATED_MLP}, rewrites=_ROTARY_ROWS),
    "olmo2": Naming({**_POST_NORMS, **_ATTENTION, **_GATED_MLP, **_QK_NORMS}),
    "olmoe": Naming({**_PRE_NORMS, **_ATTENTION, **_QK_NORMS, **_EXPERTS}),
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
            **_FUSED_GATE,
        }
    ),
    "qwen2": Naming(_LLAMA),
    "qwen2moe": Naming(
        {**_PRE_NORMS, **_ATTENTION, **_EXPERTS, **_SHARED_EXPERT},
        rewrites={"ffn_gate_inp_shexp": Rewrite.SQUEEZED},
    ),
    "qwen3": Naming({**_LLAMA, **_QK_NORMS}),
    "qwen3moe": Naming({**_PRE_NORMS, **_ATTENTION, **_QK_NORMS, **_EXPERTS}),
    "seed_oss": Naming(
        {
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            **_ATTENTION,
            **_GATED_MLP,
        }
    ),
    "smollm3": Naming(_LLAMA, rewrites=_ROTARY_ROWS),
    "stablelm": Naming(
        {
            **_LLAMA,
            "attn_q_norm": f"self_attn.q_layernorm.norms.{PER_ROW}",
            "attn_k_norm": f"self_attn.k_layernorm.norms.{PER_ROW}",
        }
    ),
    "starcoder": Naming(_GPT2, _GPT2_GLOBALS, "transformer.h"),
    "starcoder2": Naming({**_PRE_NORMS, **_ATTENTION, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}),
}


def naming_of(architecture: str, tensors: Container[str]) -> Naming:
    """The naming of a file of an `architecture` (a key of `NAMINGS`) that holds `tensors`."""
    naming = NAMINGS[architecture]
    return next((variant for tensor, variant in naming.variants.items() if tensor in tensors), naming)


def target_of(path: Path, naming: Naming, gguf_name: str) -> Target | None:
    """Where the tensor `gguf_name` goes in transformers; None when it is no parameter there.

    Args:
        path: the file, for the error's sentence.
        naming: of the file's architecture.
        gguf_name: a name like `blk.3.attn_q.weight`.

    Raises:
        InputError: the architecture has no tensor of that name.
    """
    if gguf_name in IGNORED:
        return None
    stem, _, suffix = gguf_name.rpartition(".")
    place = _place(naming, stem)
    if place is None or suffix not in {"weight", "bias"}:
        raise InputError(
            f"{path} holds the tensor {gguf_name}, which is not known for its architecture; "
            "convert the original Hugging Face folder instead."
        )
    modules, leaf = place
    names = modules if leaf in naming.bare else tuple(f"{module}.{suffix}" for module in modules)
    return Target(names, _rewrite(naming, leaf, suffix))


def _place(naming: Naming, stem: str) -> tuple[tuple[str, ...], str] | None:
    """The module paths and the bare GGUF stem."""
    if stem in naming.globals:
        return (naming.globals[stem],), stem
    block, _, rest = stem.removeprefix("blk.").partition(".")
    if not stem.startswith("blk.") or not block.isdecimal() or rest not in naming.leaves:
        return None
    leaves = naming.leaves[rest]
    listed = (leaves,) if isinstance(leaves, str) else leaves
    return tuple(f"{naming.blocks}.{block}.{leaf}" for leaf in listed), rest


def _rewrite(naming: Naming, leaf: str, suffix: str) -> Rewrite:
    rewrite = naming.rewrites.get(leaf, Rewrite.NONE)
    reorders_rows = rewrite in {Rewrite.HEAD_ROWS, Rewrite.FUSED_HEADS}
    return rewrite if suffix == "weight" or reorders_rows else Rewrite.NONE
