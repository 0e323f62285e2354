"""How byte-level vocabularies split text into words before merging, by the name that a GGUF file gives the way.

llama.cpp names each known tokenizer in `tokenizer.ggml.pre`; patterns and flags are those of its `llm_tokenizer_bpe`
and of the tokenizer.json files that the models were published with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_WORD_CASES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = _WORD_CASES % ("", "", "")
_SEED_CODER = _QWEN2.replace(r"| ?[^\s\p{L}\p{N}]+[\r\n]*|", r"| ?[^\s\p{L}\p{N}\r\n]+|")
_QWEN35 = _QWEN2.replace(r"\p{L}+|\p{N}| ?[^\s\p{L}", r"[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_DEEPSEEK_CODER = (
    "[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    r"\p{N}",
)
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")
_GPT4O = _WORD_CASES % (*[r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"] * 2, "{1,3}")


@dataclass(frozen=True)
class Splitting:
    """How a byte-level vocabulary splits text into words before merging.

    `patterns`: the regular expressions, each of which splits what the one before it left, or none for GPT-2's own.
    `digits`: every digit apart. `whole_words`: a word that is in the vocabulary is one token, whatever the merges say.
    `composes`: text is brought to Unicode's NFC first. `begins`: text begins with the beginning-of-sequence token where
    the file does not say.
    """

    patterns: tuple[str, ...] = ()
    digits: bool = False
    whole_words: bool = False
    composes: bool = False
    begins: bool = False


_LLAMA3_SPLITTING = Splitting((_LLAMA3,), whole_words=True, begins=True)
_QWEN2_SPLITTING = Splitting((_QWEN2,), composes=True)
_DIGITS = Splitting(digits=True)
_GPT4O_SPLITTING = Splitting((_GPT4O,))

SPLITTINGS: Mapping[str, Splitting] = {
    "default": Splitting(),
    "gpt-2": Splitting(),
    "phi-2": Splitting(),
    "olmo": Splitting(composes=True),
    "mpt": Splitting(composes=True),
    "llama-bpe": _LLAMA3_SPLITTING,
    "llama3": _LLAMA3_SPLITTING,
    "llama-v3": _LLAMA3_SPLITTING,
    "smaug-bpe": Splitting((_LLAMA3,)),
    "dbrx": Splitting((_LLAMA3,)),
    "qwen2": _QWEN2_SPLITTING,
    "deepseek-r1-qwen": _QWEN2_SPLITTING,
    "stablelm2": Splitting((_QWEN2,)),
    "starcoder": _DIGITS,
    "smollm": _DIGITS,
    "refact": _DIGITS,
    "command-r": Splitting(digits=True, composes=True),
    "codeshell": _DIGITS,
    "tekken": Splitting((_TEKKEN,), whole_words=True, begins=True),
    "gpt-4o": _GPT4O_SPLITTING,
    "llama4": _GPT4O_SPLITTING,
    "falcon3": _LLAMA3_SPLITTING,
    "pixtral": _LLAMA3_SPLITTING,
    "glm4": Splitting((_LLAMA3,)),
    "chatglm-bpe": Splitting((_LLAMA3,)),
    "exaone": _DIGITS,
    "exaone4": Splitting(),
    "seed-coder": Splitting((_SEED_CODER,)),
    "hunyuan": Splitting((_QWEN2,)),
    "hunyuan-dense": Splitting(_DEEPSEEK3),
    "deepseek-v3": Splitting(_DEEPSEEK3),
    "deepseek-coder": Splitting(_DEEPSEEK_CODER),
    "qwen35": Splitting((_QWEN35,), composes=True),
    "megrez": Splitting((_QWEN2,)),
    "bloom": Splitting((_BLOOM,)),
    "falcon": Splitting(_FALCON),
}
"""By the value of `tokenizer.ggml.pre`."""
