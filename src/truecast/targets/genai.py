"""onnxruntime-genai: its graph contract, genai_config.json, and a tokenizer configuration that it can load.

What was seen with onnxruntime-genai 0.18.0 (tests/targets/test_genai.py repeats it):

- it binds `logits` as [batch, sequence, vocab] unless the graph declares the middle dimension as 1, and then reads that
  one row as each prompt's last; so the graph itself has to pick the last real token of a padded row;
- `model.type` selects code only for few types; the plain language models share one implementation. `gpt2` wants keys
  and values in one tensor, so that model type is loaded as the generic `decoder`. `phi3` and `phimoe` run the text
  again where the long rotary factors begin (4097 tokens), as their authors' own generation does;
- unknown keys are errors, so only keys that every version knows are written;
- the cache is allocated for `search.max_length` positions at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from truecast.artifact import CacheInfo, GraphInfo, TensorInfo
from truecast.errors import InputError
from truecast.states import NAMES, PARTS, is_past
from truecast.targets.model import Padding, Target

CONFIG_NAME = "genai_config.json"
GENERIC_TYPE = "decoder"
DEFAULT_MAX_LENGTH = 4096
"""Tokens of prompt and answer together that the cache is made for unless the caller says otherwise."""

TYPES: Mapping[str, str] = {
    **{name: name for name in ("chatglm", "ernie4_5", "gemma", "gemma2", "gemma3_text", "granite", "internlm2")},
    **{name: name for name in ("llama", "mistral", "nemotron", "olmo", "phi", "phi3", "phimoe", "qwen2", "qwen3")},
    "smollm3": "smollm3",
    "gpt_oss": "gptoss",
    "hunyuan_v1_dense": "hunyuandensev1",
}
"""transformers' model_type → onnxruntime-genai's, where its list of types has one that fits (src/models/model_type.h,
class ModelType, and the library of 0.18.0)."""

BYTE_LEVEL_CLASS, SENTENCEPIECE_CLASS = "PreTrainedTokenizerFast", "GemmaTokenizer"
"""The classes with which onnxruntime-extensions gives the ids of tokenizer.json, for each kind of byte-pair encoding.
Every class but the second splits text at spaces, over which SentencePiece merges; `LlamaTokenizer` splits byte-level
text by a pattern of its own; `TokenizersBackend`, which transformers 5 writes, is known only since 0.18. (Seen.)"""

SAMPLING_KEYS = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")


def write_side_files(folder: Path, config: Mapping[str, Any], graph: GraphInfo) -> None:
    """Writes genai_config.json, and corrects tokenizer_config.json where onnxruntime-genai could not load it."""
    generation = _read(folder / "generation_config.json")
    _write(folder / CONFIG_NAME, genai_config(config, generation, graph))
    tokenizer_config, tokenizer = folder / "tokenizer_config.json", folder / "tokenizer.json"
    if tokenizer.is_file():
        corrected = correct_tokenizer(_read(tokenizer_config), _read(tokenizer), context_length(config, graph))
        _write(tokenizer_config, corrected)


def genai_config(config: Mapping[str, Any], generation: Mapping[str, Any], graph: GraphInfo) -> dict[str, Any]:
    """The content of genai_config.json, from config.json, generation_config.json and the graph.

    Raises InputError when the graph is no decoder or its context length is not known.
    """
    if graph.cache is None or graph.vocab_size is None:
        raise InputError("The target genai takes language models with a cache only; choose the target onnxruntime.")
    length = context_length(config, graph)
    sampling = {key: generation[key] for key in SAMPLING_KEYS if generation.get(key) is not None}
    return {
        "model": {
            "type": model_type(config),
            "vocab_size": graph.vocab_size,
            "context_length": length,
            **special_ids(config, generation, graph.eos_token_ids, graph.vocab_size),
            "decoder": _decoder(config, graph, graph.cache.layers),
        },
        "search": {
            "do_sample": False,
            **sampling,
            "max_length": min(length, DEFAULT_MAX_LENGTH),
            "past_present_share_buffer": graph.cache.in_place,
        },
    }


def model_type(config: Mapping[str, Any]) -> str:
    """The `model.type` that onnxruntime-genai accepts and that makes it run the graph as it is."""
    return TYPES.get(str(config.get("model_type")), GENERIC_TYPE)


def context_length(config: Mapping[str, Any], graph: GraphInfo) -> int:
    """Positions the model can take; raises InputError when nothing states it."""
    length = graph.context_length or config.get("max_position_embeddings")
    if not isinstance(length, int) or length < 1:
        raise InputError("The context length is not known; put max_position_embeddings into config.json.")
    return length


def special_ids(
    config: Mapping[str, Any], generation: Mapping[str, Any], graph_eos: Iterable[int], rows: int
) -> dict[str, int | list[int]]:
    """Beginning, end and padding token ids; the ends are those of all sources, since config.json often lacks some.

    Ids that the vocabulary of `rows` tokens does not have are left out.
    """
    ends = _unique([*graph_eos, *_ids(generation, "eos_token_id"), *_ids(config, "eos_token_id")], rows)
    begin = _unique([*_ids(generation, "bos_token_id"), *_ids(config, "bos_token_id")], rows)
    padding = _unique([*_ids(generation, "pad_token_id"), *_ids(config, "pad_token_id"), *ends], rows)
    named: dict[str, int | list[int]] = {}
    if begin:
        named["bos_token_id"] = begin[0]
    if ends:
        named["eos_token_id"] = ends
    if padding:
        named["pad_token_id"] = padding[0]
    return named


def correct_tokenizer(config: Mapping[str, Any], tokenizer: Mapping[str, Any], context: int) -> dict[str, Any]:
    """tokenizer_config.json with which onnxruntime-extensions gives the ids of `tokenizer`, which is tokenizer.json.

    The class follows from the kind of byte-pair encoding, and the tokens put around a text from the post-processor, as
    in transformers; `model_max_length` becomes a real one. A vocabulary of another kind keeps its class: no other would
    read it.
    """
    corrected = {**config, "model_max_length": context}
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE":
        return corrected
    corrected["tokenizer_class"] = SENTENCEPIECE_CLASS if model.get("byte_fallback") else BYTE_LEVEL_CLASS
    around = _single(tokenizer.get("post_processor") or {})
    corrected["add_bos_token"] = bool(around) and "SpecialToken" in around[0]
    corrected["add_eos_token"] = bool(around) and "SpecialToken" in around[-1]
    return corrected


def _single(processor: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The parts of one text by a post-processor's template; none where there is no template."""
    inner = [_single(part) for part in processor.get("processors", ())]
    return next(filter(None, inner), list(processor.get("single", ())))


def _decoder(config: Mapping[str, Any], graph: GraphInfo, layers: int) -> dict[str, Any]:
    past = next(tensor for tensor in graph.inputs if is_past(tensor.name))
    shape = {
        "head_size": _head_size(past, graph.cache),
        "num_key_value_heads": past.shape[1],
        "num_hidden_layers": layers,
        "num_attention_heads": _first(config, "num_attention_heads", "n_head", "num_heads"),
        "hidden_size": _first(config, "hidden_size", "n_embd", "d_model"),
    }
    names = {tensor.name for tensor in graph.inputs}
    inputs = {name: name for name in ("input_ids", "attention_mask", "position_ids") if name in names}
    return {
        "filename": graph.file,
        **{key: value for key, value in shape.items() if value is not None},
        "session_options": {"provider_options": []},
        "inputs": {
            **inputs,
            **{f"past_{part}_names": NAMES[part][0] for part in PARTS},
        },
        "outputs": {
            "logits": "logits",
            **{f"present_{part}_names": NAMES[part][1] for part in PARTS},
        },
    }


def _head_size(past: TensorInfo, cache: CacheInfo | None) -> int | str:
    """Channels of a head; a quantized cache may hold two of them in an element."""
    width = past.shape[3]
    return width * cache.values_per_element if isinstance(width, int) and cache is not None else width


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    """The value of the first of several spellings that the config has."""
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def _ids(config: Mapping[str, Any], name: str) -> list[int]:
    value = config.get(name)
    return [value] if isinstance(value, int) else list(value or [])


def _unique(values: Iterable[int], rows: int) -> list[int]:
    return [index for index in dict.fromkeys(values) if 0 <= index < rows]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); copy it from the checkpoint again.") from error
    return content


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


GENAI = Target(
    name="genai",
    description="onnxruntime-genai 0.18 or newer; padding on the right only.",
    dialect="ort",
    padding=Padding.RIGHT,
    position_ids=False,
    single_logits=True,
    write_side_files=write_side_files,
    states=frozenset(PARTS),
)
