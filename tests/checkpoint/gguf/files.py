"""GGUF files made in a test, from a transformers model, the way llama.cpp's converter makes them.

The names come from the gguf package's own table, and the changes of values are written out whole, so that nothing here
shares code with the reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

BLOCKS = 2
SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Converted:
    """One architecture as transformers has it (`config_class`, `settings`) and as the file states it (`metadata`).

    `label` tells apart cases of one architecture. Of the changes, `plus_one` is of norms, `interleaved` of query and
    key rows; `fused` joins queries, keys and values, as the converter finds them in checkpoints with code of their own.
    """

    architecture: str
    config_class: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    plus_one: bool = False
    interleaved: bool = False
    fused: bool = False
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or self.architecture

    def model(self) -> Any:
        """The model in float32 with weights that all matter."""
        sizes = {**SIZES, **self.settings}
        config = getattr(transformers, self.config_class)(**{key: value for key, value in sizes.items() if value != ()})
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        return model

    def write(
        self,
        path: Path,
        extra: Mapping[str, np.ndarray[Any, Any]] | None = None,
        kind: gguf.GGMLQuantizationType | None = None,
        numbers: Mapping[str, int] | None = None,
    ) -> Any:
        """Writes the model, and the tensors of `extra`, as `path`, matrices quantized as `kind`; the model.

        `numbers` are more metadata, by their whole keys.
        """
        model = self.model()
        writer = gguf.GGUFWriter(path, self.architecture)
        for key, value in {**_sizes(model.config), **self.metadata}.items():
            _add(writer, f"{self.architecture}.{key}", value)
        for key, listed in _xielu(model).items():
            writer.add_array(key, listed)
        add_vocabulary(writer, model.config.vocab_size)
        for key, value in (numbers or {}).items():
            _add(writer, key, value)
        for name, value in {**self.tensors(model), **(extra or {})}.items():
            add_tensor(writer, name, np.ascontiguousarray(value), kind)
        close(writer)
        return model

    def tensors(self, model: Any) -> dict[str, np.ndarray[Any, Any]]:
        """The model's parameters under GGUF names, changed as the converter changes them; tied ones once."""
        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        table = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
        named: dict[str, torch.Tensor] = {}
        stacks: dict[str, list[torch.Tensor]] = {}
        for name, parameter in _matrices(model):
            module, _, stacked = name.partition(".norms.")
            if stacked:
                stacks.setdefault(f"{module}.weight", []).append(parameter.detach())
            elif ".act_fn." not in name:
                gguf_name = table.get_name(self._known(name), try_suffixes=(".weight", ".bias"))
                assert gguf_name is not None, name
                named[gguf_name] = self._changed(gguf_name, name, parameter.detach(), model.config)
        for name, rows in stacks.items():
            named[table.get_name(name, try_suffixes=(".weight",)) or name] = torch.stack(rows)
        return {name: value.numpy() for name, value in (_fuse(named) if self.fused else named).items()}

    def _known(self, name: str) -> str:
        return name.removeprefix("transformer.") if self.architecture == "bloom" else name

    def _changed(self, gguf_name: str, name: str, value: torch.Tensor, config: Any) -> torch.Tensor:
        if name.endswith("shared_expert_gate.weight"):
            return value.squeeze()
        if self.plus_one and name.endswith("norm.weight"):
            return value + 1
        if self.interleaved and ".attn_q." in gguf_name:
            return _interleave(value, config.num_attention_heads)
        if self.interleaved and ".attn_k." in gguf_name:
            return _interleave(value, config.num_key_value_heads)
        if self.architecture == "gpt2" and ".weight" in gguf_name and "c_" in name:
            return value.T
        if self.architecture in {"gptneox", "bloom"} and "attn_qkv" in gguf_name:
            parts = value.reshape(config.num_attention_heads, 3, -1, *value.shape[1:])
            return torch.cat([parts[:, part].reshape(-1, *value.shape[1:]) for part in range(3)])
        if self.architecture == "falcon" and "attn_qkv" in gguf_name:
            heads, kv_heads = config.num_attention_heads, _kv_heads(config)
            groups = value.reshape(kv_heads, heads // kv_heads + 2, config.head_dim, *value.shape[1:])
            return torch.cat([part.flatten(0, 2) for part in (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])])
        return value


def _matrices(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters, those of experts as a checkpoint has them: gate and up apart, each all experts of a layer."""
    for name, parameter in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        if model.config.model_type == "gpt_oss" and (module.endswith(".experts") or leaf == "sinks"):
            yield from _of_gpt_oss(module, leaf, parameter)
        elif leaf == "gate_up_proj" and module.endswith(".experts"):
            gate, up = parameter.chunk(2, dim=1)
            yield f"{module}.gate_proj.weight", gate
            yield f"{module}.up_proj.weight", up
        else:
            yield (f"{name}.weight" if module.endswith(".experts") else name), parameter


def _of_gpt_oss(module: str, leaf: str, parameter: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Matrices as [experts, out, in]; the outputs of gate and up take turns in the model."""
    if leaf == "sinks":
        yield f"{module}.{leaf}.weight", parameter
        return
    suffix = "bias" if leaf.endswith("_bias") else "weight"
    tall = parameter if suffix == "bias" else parameter.swapaxes(1, 2)
    if leaf.startswith("gate_up"):
        yield f"{module}.gate_proj.{suffix}", tall[:, 0::2]
        yield f"{module}.up_proj.{suffix}", tall[:, 1::2]
    else:
        yield f"{module}.down_proj.{suffix}", tall


def _fuse(named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Queries, keys and values of each block as one tensor."""
    fused = {}
    for name, value in named.items():
        if ".attn_q." in name:
            keys, values = (named[name.replace(".attn_q.", f".attn_{part}.")] for part in "kv")
            fused[name.replace(".attn_q.", ".attn_qkv.")] = torch.cat([value, keys, values])
        elif ".attn_k." not in name and ".attn_v." not in name:
            fused[name] = value
    return fused


def _xielu(model: Any) -> dict[str, list[float]]:
    """What Apertus' activations are made of, by metadata key: a number for each block."""
    lists: dict[str, list[float]] = {}
    for name, value in model.state_dict().items():
        if ".act_fn." in name:
            lists.setdefault(f"xielu.{name.rpartition('.')[2]}", []).append(value.float().item())
    return lists


def _interleave(value: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's `permute`."""
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape)


def _kv_heads(config: Any) -> int:
    if config.model_type in {"gpt_bigcode", "falcon"} and config.multi_query and not _is_new_falcon(config):
        return 1
    if config.model_type == "falcon":
        return int(config.num_kv_heads)
    if config.model_type in {"bloom", "mpt", "gpt_neox"}:
        return int(config.num_attention_heads)
    return int(getattr(config, "num_key_value_heads", config.num_attention_heads))


def _is_new_falcon(config: Any) -> bool:
    return bool(getattr(config, "new_decoder_architecture", False))


def _sizes(config: Any) -> dict[str, Any]:
    inner = {"gpt2": "n_inner", "falcon": "ffn_hidden_size"}.get(config.model_type, "intermediate_size")
    quadruple = config.model_type in {"bloom", "mpt", "gpt_bigcode"}
    return {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": 4 * config.hidden_size if quadruple else getattr(config, inner),
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": _kv_heads(config),
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    adders[type(value)](key, value)


def add_tensor(
    writer: gguf.GGUFWriter, name: str, value: np.ndarray[Any, Any], kind: gguf.GGMLQuantizationType | None
) -> None:
    """Adds a tensor; a matrix whose rows are whole blocks is quantized as `kind`, if one is given; biases never are."""
    if kind is None or value.ndim < 2 or name.endswith(".bias") or value.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        writer.add_tensor(name, value)
    else:
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A vocabulary of the SentencePiece kind."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<pad>", "<bos>", "<eos>", "<unk>", *(f"t{index}" for index in range(4, size))])
    writer.add_token_scores([-float(index) for index in range(size)])
    writer.add_token_types([3, 3, 3, 2, *[1] * (size - 4)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)


def close(writer: gguf.GGUFWriter) -> None:
    """Writes everything out."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
