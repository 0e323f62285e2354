"""`truecast study` from end to end, and its sentences for what cannot be studied."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from tests.cli.conftest import Command, truecast_  # noqa: F401
from tests.study.building import PLAN, folder_with_plan, row, tiny_classifier
from truecast.cli.variants import Board


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (
            PLAN.replace("precision", "precison"),
            "plan.toml: [variants 1] has no key 'precison'; did you mean 'precision'?",
        ),
        (PLAN.replace('"label"', '"lable"'), "rows.jsonl has no column 'lable'; did you mean 'label'?"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    tmp_path: Path,
    truecast_: Command,  # noqa: F811
    plan: str,
    sentence: str,
) -> None:
    answer = truecast_("study", folder_with_plan(tmp_path, plan), "--out", tmp_path / "out")
    assert answer.status == 2
    assert answer.out == ""
    assert answer.sentence.endswith(sentence)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_needed(tmp_path: Path, truecast_: Command) -> None:  # noqa: F811
    answer = truecast_("study", folder_with_plan(tmp_path))
    assert answer.status == 2
    assert "--out" in answer.sentence


def test_progress_has_a_line_for_each_variant() -> None:
    display = Progress(*Progress.get_default_columns(), console=Console(file=io.StringIO()))
    shown = Board(display)
    shown("torch fp32", "kept", row("torch fp32", 12.0))
    shown("onnx fp32", "waiting", None)
    shown("onnx fp32", "exporting", None)
    shown("onnx int8", "measuring", None)
    shown("onnx int8", "done", row("onnx int8", failed="it crashed"))
    assert [(task.description, task.fields["text"], task.finished) for task in display.tasks] == [
        ("torch fp32", "12.0 ms at batch 1 of 32 tokens", True),
        ("onnx fp32", "exporting", False),
        ("onnx int8", "it crashed", True),
    ]


@pytest.mark.slow
def test_a_classifier_is_exported_proven_and_judged(
    tmp_path: Path,
    truecast_: Command,  # noqa: F811
) -> None:
    rows = [{"text": "word " * (1 + number % 5) + str(number), "label": number % 3} for number in range(12)]
    plan = folder_with_plan(tmp_path, "baselines = []\n" + PLAN.replace(', "int8"', ""), rows)
    tiny_classifier(tmp_path / "model")
    answer = truecast_("study", plan, "--out", tmp_path / "out", "--json")
    assert answer.status == 0, answer.err
    report = json.loads(answer.out)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    torch, fp32 = report["rows"]
    assert [row["state"] for row in report["rows"]] == ["measured"] * 2, [row["reason"] for row in report["rows"]]
    assert fp32["proof"].startswith("proven: ")
    assert fp32["heads"] == torch["heads"]
    assert fp32["likenesses"][0]["lowest_cosine"] > 0.99999
    assert fp32["footprint"]["anonymous"] < torch["footprint"]["anonymous"]
    assert report["drift"] > 0
    again = truecast_("study", plan, "--out", tmp_path / "out")
    assert again.status == 0
    assert report["verdict"]["sentence"] in again.out
    assert "onnx fp32" in again.out
    assert str(tmp_path / "out" / "report.html") in again.out
