"""Pickle checkpoints: never read, because unpickling runs code; refused with the command that converts them."""

from __future__ import annotations

import shlex
from pathlib import Path

from truecast.errors import InputError

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})


def conversion_command(folder: Path) -> str:
    """The shell command that rewrites the checkpoint in `folder` as safetensors beside it, with its tokenizer."""
    target = folder.with_name(f"{folder.name}-safetensors")
    code = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"source, target = {str(folder)!r}, {str(target)!r}; "
        'M.from_pretrained(source, dtype="auto").save_pretrained(target); '
        "T.from_pretrained(source).save_pretrained(target)"
    )
    return f"python -c {shlex.quote(code)}"


def refuse_pickle(folder: Path, name: str) -> InputError:
    """The error for a pickle file `name` in `folder`."""
    return InputError(
        f"{folder / name} is a pickle, which can run code when read, so truecast does not read it; "
        f"if you trust it, convert it to safetensors with: {conversion_command(folder.absolute())}"
    )
