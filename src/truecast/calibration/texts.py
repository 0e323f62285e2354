"""Reading calibration text: paragraphs of a .txt file, or the `text` of every line of a .jsonl file."""

from __future__ import annotations

import json
import re
from pathlib import Path

from truecast.errors import InputError
from truecast.runtime.text import TOKENIZER_FILE, TextCodec

_BLANK_LINES = re.compile(r"\n\s*\n")


def read_texts(path: Path) -> tuple[str, ...]:
    """The texts of a file, in order, without empty ones; raises InputError when there are none, or it is damaged."""
    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(f"{path} is neither .txt nor .jsonl; give text in paragraphs, or one JSON object a line.")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path given as --calibration.") from error
    rows = _BLANK_LINES.split(content) if path.suffix == ".txt" else _json_rows(path, content)
    texts = tuple(text.strip() for text in rows if text.strip())
    if not texts:
        raise InputError(f"{path} holds no text; give at least one paragraph, or one line like {EXAMPLE}.")
    return texts


def calibration_codec(folder: Path) -> TextCodec:
    """The tokenizer that text for calibration goes through; raises InputError where the checkpoint gave none."""
    if not (folder / TOKENIZER_FILE).is_file():
        raise InputError(
            f"Calibration needs text, and the checkpoint has no {TOKENIZER_FILE} to tokenize it with; put it beside "
            "the weights, or choose what needs no calibration."
        )
    return TextCodec.open(folder)


EXAMPLE = '{"text": "Bread needs four things."}'


def _json_rows(path: Path, content: str) -> list[str]:
    return [_text_of(path, number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]


def _text_of(path: Path, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number} is no JSON ({error}); write {EXAMPLE}.") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise InputError(f'{path}, line {number} has no "text" that is a string; write {EXAMPLE}.')
    return text
