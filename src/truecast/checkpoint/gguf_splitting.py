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
_GPT4O = _WORD_CASES % (*[r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"] * 2, "{1,3}")


@dataclass(frozen=True)
class Splitting:
    """How a byte-level vocabulary splits text into words before merging.

    `pattern`: the regular expression, or None for GPT-2's own. `digits`: every digit apart. `whole_words`: a word that
    is in the vocabulary is one token, whatever the merges say. `composes`: text is brought to Unicode's NFC first.
    `begins`: text begins with the beginning-of-sequence token where the file does not say.
    """

    pattern: str | None = None
    digits: bool = False
    whole_words: bool = False
    composes: bool = False
    begins: bool = False


_LLAMA3_SPLITTING = Splitting(_LLAMA3, whole_words=True, begins=True)
_QWEN2_SPLITTING = Splitting(_QWEN2, composes=True)
_DIGITS = Splitting(digits=True)

SPLITTINGS: Mapping[str, Splitting] = {
    "default": Splitting(),
    "gpt-2": Splitting(),
    "phi-2": Splitting(),
    "olmo": Splitting(composes=True),
    "mpt": Splitting(composes=True),
    "llama-bpe": _LLAMA3_SPLITTING,
    "llama3": _LLAMA3_SPLITTING,
    "llama-v3": _LLAMA3_SPLITTING,
    "smaug-bpe": Splitting(_LLAMA3),
    "dbrx": Splitting(_LLAMA3),
    "qwen2": _QWEN2_SPLITTING,
    "deepseek-r1-qwen": _QWEN2_SPLITTING,
    "stablelm2": Splitting(_QWEN2),
    "starcoder": _DIGITS,
    "smollm": _DIGITS,
    "refact": _DIGITS,
    "command-r": Splitting(digits=True, composes=True),
    "codeshell": _DIGITS,
    "tekken": Splitting(_TEKKEN, whole_words=True, begins=True),
    "gpt-4o": Splitting(_GPT4O),
}
"""By the value of `tokenizer.ggml.pre`."""
