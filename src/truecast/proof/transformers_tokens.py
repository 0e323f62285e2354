"""Whether transformers' tokenizer of an artifact gives the ids of its tokenizer.json, which are meant.

They may part by design: a class may add a first token, or put a space before a text, whatever tokenizer.json says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from truecast.proof.genai_tokens import EDGES, PAGE, difference
from truecast.proof.tally import reason
from truecast.runtime.text import TOKENIZER_FILE


def transformers_notes(folder: Path) -> list[str]:
    """A note where the tokenizer that AutoTokenizer opens in `folder` gives other ids, or where it opens none."""
    if not (folder / TOKENIZER_FILE).is_file():
        return []
    lines = (*PAGE, *EDGES)
    try:
        ours = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        ours.no_truncation()
        ours.no_padding()
        theirs: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        odd = {text: found for text in lines if (found := difference(ours, theirs, text))}
    except Exception as error:  # whatever the class that the files name does not take, or not make of a text
        return [f"transformers has no tokenizer for the artifact's folder ({reason(error)}); tokenizer.json is meant."]
    return [
        f"transformers' {type(theirs).__name__} gives other ids than tokenizer.json for {len(odd)} of {len(lines)} "
        f"lines, the first {text!r} ({found}); those of tokenizer.json are meant."
        for text, found in list(odd.items())[:1]
    ]
