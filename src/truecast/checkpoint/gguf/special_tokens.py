"""Special tokens of a GGUF file: those that its metadata name, and those that llama.cpp finds by their spelling.

Spellings and their exceptions from llama.cpp's vocabulary loader (src/llama-vocab.cpp, `llama_vocab::impl::load`),
which ends a text at every one of them, whatever the metadata name: https://github.com/ggml-org/llama.cpp/issues/9606
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

ENDS = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
        *("<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"),
        *("<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>"),
    }
)
"""Spellings that end a text wherever a vocabulary has them."""
CONTROL, CONTROL_ENDS = 3, frozenset({"</s>"})
"""Spellings that do so only as control tokens (type 3): in Gemma's vocabulary `</s>` is HTML's end of struck text."""
FILLERS: Mapping[str, tuple[str, ...]] = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
"""Tokens of filling in the middle that end a text too: by the metadata, else the first of these spellings."""
EXCEPTIONS = (
    ("<|end|>", ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"})),
    ("</s>", ({"<|tool_response>"},)),
)
"""Spellings that end nothing where the vocabulary has all of another set: there they end a message or a tool's turn."""
KEY = "tokenizer.ggml.{}_token_id"
NAMES = ("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "cls", "mask", *FILLERS)
"""Special tokens of the metadata (llama.cpp's own spelling of `separator`)."""


def special_id(metadata: Mapping[str, Any], name: str, rows: int) -> int | None:
    """The id of the special token `name`; None where the file has none, or one outside its `rows` of vocabulary."""
    index = metadata.get(KEY.format(name))
    return index if isinstance(index, int) and 0 <= index < rows else None


def stray_ids(metadata: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """What the metadata name as special tokens, by name, and the vocabulary of `rows` tokens does not have."""
    stated = {name: metadata[key] for name in NAMES if (key := KEY.format(name)) in metadata}
    return {name: index for name, index in stated.items() if special_id(metadata, name, rows) is None}


def spelled_ends(tokens: Sequence[str], types: Sequence[int]) -> list[int]:
    """The ids of tokens whose spelling ends a text, of a vocabulary's `tokens` and their types."""
    found = _found(tokens, ENDS | CONTROL_ENDS)
    found = {text: index for text, index in found.items() if text in ENDS or types[index] == CONTROL}
    spared = {text for text, others in EXCEPTIONS if any(other <= found.keys() for other in others)}
    return [index for token, index in found.items() if token not in spared]


def end_ids(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], rows: int) -> list[int]:
    """The ids that end a text: that of the metadata first, then the others in their order."""
    eos, *ends = (special_id(metadata, name, rows) for name in ("eos", "eot", "eom"))
    spelled = _found(tokens, {text for texts in FILLERS.values() for text in texts})
    for name, texts in FILLERS.items():
        stated = special_id(metadata, name, rows)
        ends.append(next((spelled[text] for text in texts if text in spelled), None) if stated is None else stated)
    known = {index for index in (*ends, *spelled_ends(tokens, types)) if index is not None and index < rows}
    return sorted(known) if eos is None else [eos, *sorted(known - {eos})]


def _found(tokens: Sequence[str], texts: Collection[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens) if token in texts}
