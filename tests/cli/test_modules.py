"""The command line for encoders and modules: tasks, factories, free axes, and what is said of wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import truecast
from tests.cli.conftest import Answer, Command
from tests.encoders import classifier, sentences
from truecast.artifact import Status

FACTORY = """
import torch
from torch import nn

def alone(path):
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def with_examples(path):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh()), torch.zeros(2, 5, 8)

def not_fixed(path):
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh()), torch.zeros(2, 5, 8), {"input": {1: "length=1..64"}}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A file with factories where the command runs, under a name that no other test has."""
    name = "cli_factory_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("cli") / "classifier")


def test_a_task_is_exported_and_proven_again(truecast_: Command, source: Path, tmp_path: Path) -> None:
    words = ("--task", "text-classification", "--precision", "int8", "--json")
    answer = truecast_("export", source, tmp_path / "out", *words)
    assert (answer.status, answer.complaints) == (0, [])
    assert json.loads(answer.out)["status"] == "proven"
    assert truecast.open(tmp_path / "out").manifest.task == "text-classification"
    again = truecast_("verify", tmp_path / "out")
    assert (again.status, again.complaints) == (0, [])
    assert "is proven: " in again.out


def test_a_factory_is_exported_and_proven_again(truecast_: Command, package: str, tmp_path: Path) -> None:
    words = ("--module", f"{package}:with_examples", "--dynamic", "input.0=rows", "--dynamic", "input.1=length=1..64")
    answer = truecast_("export", tmp_path, tmp_path / "out", *words)
    assert (answer.status, answer.complaints) == (0, [])
    manifest = truecast.open(tmp_path / "out").manifest
    assert manifest.certificate.status is Status.PROVEN
    assert (manifest.precision, manifest.settings["module"]) == ("fp32", f"{package}:with_examples")
    assert manifest.graph.inputs[0].shape == ["rows", "length", 8]
    assert manifest.graph.axes == {"rows": "1..", "length": "1..64"}
    assert truecast_("verify", tmp_path / "out").status == 0


def test_a_factory_that_gives_other_weights_is_noticed(truecast_: Command, package: str, tmp_path: Path) -> None:
    words = ("--module", f"{package}:not_fixed", "--no-verify")
    assert truecast_("export", tmp_path, tmp_path / "out", *words).status == 0
    answer = truecast_("verify", tmp_path / "out")  # its weights are random, and not those of before
    assert answer.status == 1
    assert "state of the module" in answer.out


def test_a_module_in_memory_cannot_be_proven_again_from_here(truecast_: Command, tmp_path: Path) -> None:
    truecast.export(torch.nn.Linear(8, 4), tmp_path / "out", example_inputs=torch.zeros(2, 8), verify=False)
    answer = truecast_("verify", tmp_path / "out")
    assert (answer.status, answer.out) == (2, "")
    assert "was made from a module in memory; prove it again in Python" in answer.sentence


def one_sentence(answer: Answer, tmp_path: Path) -> str:
    assert (answer.status, answer.out) == (2, "")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.rejected").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    return answer.sentence


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--task", "text-clasification"],
            "There is no task 'text-clasification'; did you mean 'text-classification'?",
        ),
        (["--task", "image-classification"], "A BertForSequenceClassification, as "),
        (["--task", "token-classification"], "A BertForSequenceClassification, as "),
        (["--clean-up", "onnxslimm"], "There is no clean-up 'onnxslimm'; did you mean 'onnxslim'?"),
        (["--module", "model"], "--module 'model' names no function; write package.file:function or FILE.py:function."),
        (
            ["--module", "nowhere:make"],
            "--module nowhere:make cannot be imported: its code needs the Python package nowhere",
        ),
        (["--module", "PACKAGE:other"], "--module PACKAGE:other: PACKAGE has no other; name a function"),
        (["--module", "PACKAGE:alone"], "Sequential takes no input_ids, so truecast has no example; give example"),
        (["--dynamic", "x"], "--dynamic x is no axis; write INPUT.AXIS=NAME, as x.1=length or x.1=length=1..512."),
        (["--dynamic", "x=b"], "--dynamic x=b is no axis; write INPUT.AXIS=NAME"),
        (["--dynamic", "x.one=b"], "--dynamic x.one=b is no axis; write INPUT.AXIS=NAME"),
        (["--dynamic", "x.0=b"], "There is no input 'x' to free an axis of; there are input_ids, attention_mask"),
        (["--dynamic", "input_ids.2=b"], "input_ids has the axes 0 to 1; [2] cannot be freed."),
        (["--dynamic", "input_ids.1=b=9..1"], "The axis 'b=9..1' has no size; write the smallest and the largest"),
        (["--dynamic", "input_ids.1=9"], "'9' is no axis; write a name, or a name with its sizes"),
        (["--exporter", "jit"], "There is no exporter 'jit'; "),
        (["--opset", "17"], "The exporter dynamo writes no opset 17; choose one from 18 to "),
        (["--target", "genai"], "--target genai is for decoders; choose one of onnxruntime, portable."),
        (["--kv-cache", "int8"], "--kv-cache is for decoders; "),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    words: list[str], sentence: str, truecast_: Command, source: Path, tmp_path: Path, package: str
) -> None:
    given = [word.replace("PACKAGE", package) for word in words]
    answer = truecast_("export", source, tmp_path / "out", *given)
    assert one_sentence(answer, tmp_path).startswith(sentence.replace("PACKAGE", package))


def test_a_folder_of_sentence_transformers_without_its_settings_is_named(
    truecast_: Command, source: Path, tmp_path: Path
) -> None:

    broken = sentences(tmp_path / "sentences")
    (broken / "1_Pooling" / "config.json").unlink()
    answer = truecast_("export", broken, tmp_path / "out")
    assert "has no 1_Pooling/config.json, which modules.json names" in one_sentence(answer, tmp_path)
