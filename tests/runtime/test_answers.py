"""What an encoder says of a text, against its own outputs; and the graph kept as the runtime rewrote it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import truecast
from tests.conformance.encoders import BY_NAME
from tests.encoders import LABELS, classifier, sentences
from tests.runtime.test_encoder import words
from tests.tiny import tiny_checkpoint
from truecast.artifact import SAVED_NAME, Status
from truecast.cli import main
from truecast.errors import InputError
from truecast.runtime import answers
from truecast.runtime.encoder import Tokens
from truecast.runtime.text import TextCodec

TEXT = "is it any good?"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> truecast.Artifact:
    folder = tmp_path_factory.mktemp("answers")
    return truecast.export(classifier(folder / "source"), folder / "out", save_optimized=True)


def test_labels_have_the_shares_of_their_logits(labelled: truecast.Artifact) -> None:
    logits = labelled.run(Tokens.open(labelled.folder).batch([TEXT]))["logits"][0]
    shares = np.exp(logits) / np.exp(logits).sum()
    found = labelled.answer(TEXT).values["labels"]
    assert found == pytest.approx({LABELS[i]: float(share) for i, share in enumerate(shares)}, rel=1e-5)
    assert list(found) == [LABELS[int(i)] for i in np.argsort(-shares)]


def test_the_command_line_prints_the_likeliest_label_first(
    labelled: truecast.Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    best = next(iter(labelled.answer(TEXT).values["labels"]))
    assert main(["run", str(labelled.folder), TEXT]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(best)
    assert main(["run", str(labelled.folder), TEXT, "--json"]) == 0
    assert next(iter(json.loads(capsys.readouterr().out)["labels"])) == best


def test_a_sentence_becomes_its_embedding(tmp_path: Path) -> None:
    artifact = truecast.export(sentences(tmp_path / "source"), tmp_path / "out", verify=False)
    want = artifact.run(Tokens.open(artifact.folder).batch([TEXT]))["sentence_embedding"][0]
    np.testing.assert_array_equal(artifact.answer(TEXT).values["sentence_embedding"], want.tolist())


def test_a_model_of_pictures_takes_no_text(tmp_path: Path) -> None:
    source = tiny_checkpoint(BY_NAME["vit"], tmp_path / "source")
    artifact = truecast.export(source, tmp_path / "out", verify=False)
    with pytest.raises(InputError, match="takes no text; feed arrays"):
        artifact.answer(TEXT)


def test_the_saved_graph_is_proven_and_names_what_binds_it(labelled: truecast.Artifact) -> None:
    checks = {check.name: check.passed for check in labelled.manifest.certificate.checks}
    assert checks["as saved against the original, logits"]
    assert any(SAVED_NAME in notice and "this processor" in notice for notice in labelled.manifest.notices)


def test_an_error_in_the_saved_graph_fails_the_proof(labelled: truecast.Artifact) -> None:
    path = labelled.folder / SAVED_NAME
    before = path.read_bytes()
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = bytes(reversed(weight.raw_data))
    onnx.save(model, path)
    try:
        certificate = labelled.verify()
    finally:
        path.write_bytes(before)
    assert certificate.status is Status.FAILED
    failed = [check.name for check in certificate.checks if not check.passed]
    assert any(name.startswith("as saved") for name in failed)
    assert not any(name.startswith("as shipped") for name in failed)


class Scaled(nn.Module):
    """torch's own attention, whose scale the older exporter writes as a float64 constant."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, scale=0.3)


def test_a_float64_constant_of_the_older_exporter_is_folded(tmp_path: Path) -> None:
    artifact = truecast.export(
        Scaled(), tmp_path / "out", example_inputs=torch.randn(2, 3, 5, 8), exporter="torchscript"
    )
    assert artifact.manifest.certificate.status is Status.PROVEN


def asked(task: str, outputs: dict[str, list[object]], pair: str | None = None, **config: object) -> answers.Lines:
    """What is said of given outputs for the text "is it good"."""
    tokens = Tokens(TextCodec(words(), Path("no folder")), ["input_ids"], None)
    pairs = None if pair is None else [pair]
    row = tokens.encodings(["is it good"], pairs=pairs)[0]
    given = answers._Asked(tokens, tokens.batch(["is it good"], pairs=pairs), row, pair, config)
    return answers.ANSWERS[task](given, {name: np.array([value], np.float32) for name, value in outputs.items()})


LOGITS = {"logits": [2.0, -1.0, 0.5]}
NAMES = {"id2label": {"0": "praise", "1": "question", "2": "complaint"}}


def test_several_labels_have_chances_of_their_own() -> None:
    _, values = asked("text-classification", LOGITS, **NAMES, problem_type="multi_label_classification")
    chances = {"praise": 1 / (1 + np.exp(-2)), "complaint": 1 / (1 + np.exp(-0.5)), "question": 1 / (1 + np.exp(1))}
    assert values["labels"] == pytest.approx(chances)


def test_regression_gives_plain_numbers() -> None:
    lines, values = asked("text-classification", LOGITS, **NAMES, problem_type="regression")
    assert values["labels"] == {"praise": 2.0, "complaint": 0.5, "question": -1.0}
    assert lines[0] == "  2.0000  praise"


def test_a_score_has_the_function_that_the_cross_encoder_names() -> None:
    score = {"logits": [2.0]}
    sigmoid = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}
    assert asked("text-classification", score)[1] == {"score": 2.0}
    assert asked("text-classification", score, **sigmoid)[1] == pytest.approx({"score": 1 / (1 + np.exp(-2))})


def test_tokens_that_are_no_text_get_no_label() -> None:
    _, values = asked("token-classification", {"logits": [[9, 0], [0, 9], [9, 0], [0, 9], [9, 0]]})
    assert values == {"tokens": ["is", "it", "good"], "labels": ["LABEL_1", "LABEL_0", "LABEL_1"]}


def test_the_answer_to_a_question_is_a_run_of_its_context() -> None:
    """[CLS] is it good [SEP] it is good [SEP]: the best ends lie in the question, and a run does not go back."""
    start, end = [9, 9, 0, 0, 0, 1, 5, 0, 0], [9, 9, 0, 0, 0, 6, 0, 4, 0]
    lines, values = asked("question-answering", {"start_logits": start, "end_logits": end}, "it is good")
    assert values["answer"] == "is good" and lines[0].endswith("  is good")
    with pytest.raises(InputError, match="A question needs a text to find its answer in; give it with --pair"):
        asked("question-answering", {"start_logits": start, "end_logits": end})


def test_a_pooler_is_not_offered_as_the_sentences_vector() -> None:
    outputs = {"last_hidden_state": np.zeros((1, 3, 2)), "pooler_output": np.ones((1, 2))}
    lines, _ = answers._vectors(None, outputs)  # type: ignore[arg-type]
    assert lines == ["last_hidden_state: 1 x 3 x 2", "pooler_output: 1 x 2"]


def test_the_command_line_takes_pairs(labelled: truecast.Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(labelled.folder), TEXT, "--pair", "it is", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["labels"]
    logits = labelled.run(Tokens.open(labelled.folder).batch([TEXT], pairs=["it is"]))["logits"][0]
    assert list(found) == [LABELS[int(i)] for i in np.argsort(-logits)]
