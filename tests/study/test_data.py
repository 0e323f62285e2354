"""Rows are read as they are, labels become classes or scores, and what is missing is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import write_tokenizer
from truecast.errors import InputError
from truecast.study.data import Examples, read_examples
from truecast.study.feeds import Tokens, chosen, exact, padded, tokenize
from truecast.study.plan import Data


def examples(folder: Path, records: list[dict[str, Any]], **settings: Any) -> Examples:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in records))
    return read_examples(Data.model_validate({"file": file, "text": "text", **settings}), folder)


def refused(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> str:
    with pytest.raises(InputError) as raised:
        examples(folder, rows, **settings)
    return str(raised.value)


def test_texts_and_class_numbers(tmp_path: Path) -> None:
    found = examples(tmp_path, [{"text": "a", "y": 2}, {"text": "b", "y": 0}], labels={"logits": "y"})
    assert found.texts == (("a",), ("b",))
    assert found.labels["logits"].are_classes
    assert found.labels["logits"].values.tolist() == [2, 0]


def test_class_names_follow_the_plans_order_or_else_the_models(tmp_path: Path) -> None:
    rows = [{"text": "a", "y": "red"}, {"text": "b", "y": "blue"}]
    found = examples(tmp_path, rows, labels={"logits": "y"}, classes={"logits": ["blue", "green", "red"]})
    assert found.labels["logits"].values.tolist() == [2, 0]
    (tmp_path / "config.json").write_text('{"id2label": {"0": "red", "1": "blue"}}')
    assert examples(tmp_path, rows, labels={"logits": "y"}).labels["logits"].values.tolist() == [0, 1]


def test_scores_stay_numbers(tmp_path: Path) -> None:
    rows = [{"text": "a", "y": 2.5}, {"text": "b", "y": 1.0}]
    assert not examples(tmp_path, rows, labels={"logits": "y"}).labels["logits"].are_classes
    assert not examples(tmp_path, [{"text": "a", "y": 1.0}], labels={"logits": "y"}).labels["logits"].are_classes


def test_csv_has_the_same_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('\ufefftext,y,ids\n"a, quoted\nline",1,"3 4"\nb,0,[5]\n', encoding="utf-8")
    found = read_examples(Data(file=file, text="text", labels={"logits": "y"}), tmp_path)  # type: ignore[arg-type]
    assert found.texts == (("a, quoted\nline",), ("b",))
    assert found.labels["logits"].values.tolist() == [1, 0]
    assert read_examples(Data(file=file, token_ids="ids"), tmp_path).ids == ((3, 4), (5,))


def test_pairs_are_read_from_two_columns(tmp_path: Path) -> None:
    assert examples(tmp_path, [{"q": "a", "p": "b"}], text=["q", "p"]).texts == (("a", "b"),)


def test_rows_are_cut_off(tmp_path: Path) -> None:
    assert len(examples(tmp_path, [{"text": "a"}] * 9, rows=4)) == 4


@pytest.mark.parametrize(
    ("rows", "settings", "sentence"),
    [
        ([], {}, "has no rows"),
        ([{"txt": "a"}], {}, "has no column 'text'; did you mean 'txt'?"),
        ([{"text": "a"}, {"text": None}], {}, "row 2 has no 'text'; fill it in"),
        ([{"text": 3}], {}, "row 1: 'text' is 3 and not text"),
        ([{"text": "a"}], {"labels": {"logits": "label"}}, "has no column 'label'; choose one of text."),
        ([{"text": "a", "y": 1}, {"text": "b"}], {"labels": {"logits": "y"}}, "row 2 has no 'y'"),
        (
            [{"text": "a", "y": "red"}],
            {"labels": {"logits": "y"}},
            "list the names in the model's order as data.classes",
        ),
        (
            [{"text": "a", "y": "rde"}],
            {"labels": {"logits": "y"}, "classes": {"logits": ["red", "blue"]}},
            "row 1: 'y' has no class 'rde'; did you mean 'red'?",
        ),
        ([{"text": "a", "ids": []}], {"text": None, "token_ids": "ids"}, "row 1: 'ids' is no list of token ids"),
        ([{"text": "a", "ids": [-1]}], {"text": None, "token_ids": "ids"}, "row 1: 'ids' is no list of token ids"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], sentence: str
) -> None:
    assert sentence in refused(tmp_path, rows, **settings)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("rows.parquet", b"", "is no data file"),
        ("rows.jsonl", b"{", "line 1 is no JSON"),
        ("rows.jsonl", b"[1]", "line 1 is no object"),
        ("rows.csv", b"text\n\xff\xfe\n", "save it as UTF-8"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_examples(Data(file=tmp_path / name, text="text"), tmp_path)  # type: ignore[arg-type]


def test_tokens_are_the_models_own_and_cut_to_length(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    found = examples(tmp_path, [{"text": "abc"}, {"text": "defghij"}])
    rows = tokenize(found, Data(file=tmp_path / "rows.jsonl", text="text", max_length=5), tmp_path)  # type: ignore[arg-type]
    assert [len(row.ids) for row in rows] == [3, 5]
    assert rows[0].types == (0, 0, 0)


def test_padding_is_masked() -> None:
    feeds = padded([Tokens((7, 8, 9), (0, 0, 1)), Tokens((5,), (0,))], 99)
    assert feeds["input_ids"].tolist() == [[7, 8, 9], [5, 99, 99]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert feeds["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0]]


def test_a_timed_batch_has_exactly_its_size_and_no_padding() -> None:
    feeds = exact([Tokens((1, 2), (0, 0)), Tokens((3, 4, 5, 6, 7), (0,) * 5)], 3, 4)
    assert feeds["input_ids"].tolist() == [[1, 2, 1, 2], [3, 4, 5, 6], [1, 2, 1, 2]]
    assert np.all(feeds["attention_mask"] == 1)


def test_inputs_that_text_cannot_give_are_named() -> None:
    feeds = padded([Tokens((1,), (0,))], 0)
    assert list(chosen(feeds, ["attention_mask"])) == ["attention_mask"]
    with pytest.raises(InputError, match="'pixel_values' cannot be made from text"):
        chosen(feeds, ["pixel_values"])
