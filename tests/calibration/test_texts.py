"""Calibration text: what counts as one, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from truecast.calibration.texts import read_texts
from truecast.errors import InputError


def text_file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_paragraphs_are_texts(tmp_path: Path) -> None:
    path = text_file(tmp_path, "a.txt", "\n\nOne,\nin two lines.\n \t\nTwo.\n\n\n\nDrei für drei.\n")
    assert read_texts(path) == ("One,\nin two lines.", "Two.", "Drei für drei.")


def test_lines_of_json_are_texts(tmp_path: Path) -> None:
    path = text_file(tmp_path, "a.jsonl", '{"text": "One.", "source": 7}\n\n{"text": "  "}\n{"text": "Zw\\u00f6lf"}\n')
    assert read_texts(path) == ("One.", "Zwölf")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "One.", "is neither .txt nor .jsonl"),
        ("a.txt", "", "holds no text"),
        ("a.txt", " \n\n\t\n", "holds no text"),
        ("a.jsonl", "", "holds no text"),
        ("a.jsonl", '{"text": ""}\n', "holds no text"),
        ("a.jsonl", '{"text": "One."}\n{"text": \n', "line 2 is no JSON"),
        ("a.jsonl", '{"prompt": "One."}\n', 'line 1 has no "text" that is a string'),
        ("a.jsonl", '{"text": ["One."]}\n', 'line 1 has no "text" that is a string'),
        ("a.jsonl", '"One."\n', 'line 1 has no "text" that is a string'),
        ("a.txt", b"caf\xe9", "is not UTF-8 text (byte 3)"),
    ],
)
def test_a_file_without_text_is_refused(name: str, content: str | bytes, sentence: str, tmp_path: Path) -> None:
    path = text_file(tmp_path, name, content)
    with pytest.raises(InputError) as refused:
        read_texts(path)
    assert str(refused.value).startswith(str(path)) and sentence in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.txt cannot be read \(No such file or directory\)"):
        read_texts(tmp_path / "none.txt")
