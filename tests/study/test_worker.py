"""What a worker measures, of a tiny classifier in PyTorch and of ONNX graphs of the same function and of worse ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as helper
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.publishing.folders import REJECTED, artifact
from tests.study.building import PLAN, folder_with_plan, tiny_classifier
from truecast.errors import InputError, ProofError
from truecast.study.authors import build_author
from truecast.study.plan import Model, Plan, read_plan
from truecast.study.results import Row, State
from truecast.study.variants import REFERENCE, Variant
from truecast.study.worker import Answer, Job, main, measure, prepare

PAIR = """
import torch

class Pair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.table, self.one = torch.nn.Embedding(257, 8), torch.nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1).to(self.table.weight.dtype)
        mean = (self.table(input_ids) * mask).sum(1) / mask.sum(1)
        return {"kind": self.one(mean), "embedding": mean}

def build(source):
    return Pair()
"""


def test_of_a_rejected_artifact_the_worker_removes_only_what_truecast_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = artifact(tmp_path / "artifact.rejected", manifest=REJECTED)
    (kept / "notes.txt").write_text("mine")

    def rejected(*args: Any, **kwargs: Any) -> None:
        raise ProofError("It differs. It is kept in there.", kept)

    monkeypatch.setattr("truecast.export", rejected)
    plan = read_plan(folder_with_plan(tmp_path))
    variant = Variant(name="onnx fp32", kind="onnx")
    told = Job(step="prepare", plan=plan, variant=variant, folder=tmp_path, reference=tmp_path / "reference.npz")
    (tmp_path / "job.json").write_text(told.model_dump_json())
    assert main(str(tmp_path / "job.json"), str(tmp_path / "answer.json")) == 0
    assert json.loads((tmp_path / "answer.json").read_text())["reason"] == "It differs."
    assert [path.name for path in kept.iterdir()] == ["notes.txt"]


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny classifier and a plan."""
    folder = tmp_path_factory.mktemp("studied")
    rows = [{"text": "word " * (1 + number % 5) + str(number), "label": number % 3} for number in range(12)]
    folder_with_plan(folder, PLAN, rows)
    tiny_classifier(folder / "model")
    return folder


def job(folder: Path, variant: Variant, plan: Plan | None = None) -> Job:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    return Job(
        step="measure",
        plan=plan or read_plan(folder / "plan.toml"),
        variant=variant,
        folder=out / "variants" / variant.slug,
        reference=out / "reference.npz",
    )


def baseline(kind: str) -> Variant:
    return Variant(name=REFERENCE if kind == "fp32" else f"torch {kind}", kind="torch", settings={"baseline": kind})


@pytest.fixture(scope="module")
def reference(studied: Path) -> Answer:
    return measure(job(studied, baseline("fp32")))


def test_float32_in_pytorch_is_measured_whole(studied: Path, reference: Answer) -> None:
    row = Row.model_validate({"variant": baseline("fp32"), **reference})
    assert row.state is State.MEASURED
    assert [cell.place for cell in row.cells] == [(1, 1, 8), (1, 3, 8)]
    assert all(0 < cell.p50 <= cell.p90 <= cell.p99 for cell in row.cells)
    assert [cell.calls for cell in row.cells] == [3, 3]
    (head,) = row.heads
    assert (head.output, head.rows, head.agreement) == ("logits", 12, 1.0)
    assert row.lowest_cosine == pytest.approx(1.0)
    assert row.footprint is not None
    assert row.footprint.disk > 40_000
    assert row.footprint.peak >= row.footprint.anonymous > 0
    assert row.environment["torch"] == torch.__version__


def test_the_score_is_transformers_own(studied: Path, reference: Answer) -> None:
    """The accuracy of the worker, by hand: one row at a time, through transformers alone."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(studied / "model")
    model = AutoModelForSequenceClassification.from_pretrained(studied / "model").eval()
    rows = [json.loads(line) for line in (studied / "rows.jsonl").read_text().splitlines()]
    with torch.no_grad():
        guesses = [int(model(**tokenizer(row["text"], return_tensors="pt")).logits.argmax()) for row in rows]
    right = sum(guess == row["label"] for guess, row in zip(guesses, rows, strict=True))
    assert reference["heads"][0]["accuracy"] == pytest.approx(right / len(rows))


def test_bfloat16_is_a_little_off(studied: Path, reference: Answer) -> None:
    row = Row.model_validate({"variant": baseline("bf16"), **measure(job(studied, baseline("bf16")))})
    assert row.lowest_cosine is not None
    assert 0.99 < row.lowest_cosine < 0.999999


def test_more_threads_are_more_cells(studied: Path, reference: Answer) -> None:
    plan = read_plan(studied / "plan.toml")
    two = plan.model_copy(update={"measure": plan.measure.model_copy(update={"threads": (1, 2)})})
    try:
        cells = measure(job(studied, baseline("bf16"), two))["cells"]
    finally:
        torch.set_num_threads(1)
    assert [(cell["threads"], cell["batch"]) for cell in cells] == [(1, 1), (1, 3), (2, 1), (2, 3)]


def graph_of(weights: Mapping[str, np.ndarray[Any, Any]], file: Path, output: str = "kind") -> Path:
    """The factory's module as an ONNX graph, written by hand."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["column", "middle"], ["count"], keepdims=0),
        helper.make_node("Div", ["total", "count"], ["embedding"]),
        helper.make_node("Gemm", ["embedding", "weight", "bias"], [output], transB=1),
    ]
    held = {**weights, "last": np.array([2], np.int64), "middle": np.array([1], np.int64)}
    inputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size])
        for name, size in ((output, 2), ("embedding", 8))
    ]
    initializers = [onnx.numpy_helper.from_array(value, name) for name, value in held.items()]
    graph = helper.make_graph(nodes, "pair", inputs, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), file)
    return file


@pytest.fixture(scope="module")
def pair(studied: Path) -> tuple[Plan, dict[str, np.ndarray[Any, Any]], Answer]:
    """A module by its factory, its weights, and its row in PyTorch."""
    folder = studied / "pair"
    folder.mkdir()
    (folder / "pair_of_heads.py").write_text(PAIR)
    text = PLAN.replace('source = "model"', 'source = "../model"\nmodule = "pair_of_heads.py:build"')
    (folder / "rows.jsonl").write_text((studied / "rows.jsonl").read_text().replace('"label": 2', '"label": 1'))
    (folder / "plan.toml").write_text(text.replace("logits =", "kind ="))
    plan = read_plan(folder / "plan.toml")
    answer = measure(job(folder, baseline("fp32"), plan))
    state = build_author(plan.model, torch.float32).module.state_dict()
    names = {"table.weight": "table", "one.weight": "weight", "one.bias": "bias"}
    return plan, {names[name]: value.numpy() for name, value in state.items()}, answer


def measured(plan: Plan, folder: Path, file: Path) -> tuple[Answer, Answer]:
    variant = Variant(name=file.stem, kind="file", settings={"file": str(file)})
    told = job(folder, variant, plan)
    return prepare(told), measure(told)


def test_a_graph_of_the_same_function_scores_the_same(studied: Path, pair: Any) -> None:
    plan, weights, reference = pair
    prepared, answer = measured(plan, studied / "pair", graph_of(weights, studied / "pair" / "same.onnx"))
    assert answer["heads"] == reference["heads"]
    assert [one["output"] for one in answer["likenesses"]] == ["kind", "embedding"]
    assert all(one["lowest_cosine"] == pytest.approx(1.0) for one in answer["likenesses"])
    assert answer["footprint"]["disk"] == (studied / "pair" / "same.onnx").stat().st_size
    assert isinstance(prepared["findings"], list)


def test_planted_errors_show(studied: Path, pair: Any) -> None:
    plan, weights, reference = pair
    worse = {**weights, "weight": weights["weight"][::-1].copy(), "bias": weights["bias"][::-1].copy()}
    _, answer = measured(plan, studied / "pair", graph_of(worse, studied / "pair" / "swapped.onnx"))
    assert answer["heads"][0]["accuracy"] == pytest.approx(1 - reference["heads"][0]["accuracy"])
    assert answer["heads"][0]["agreement"] == 0.0
    broken = {**weights, "bias": np.array([np.nan, 0], np.float32)}
    _, answer = measured(plan, studied / "pair", graph_of(broken, studied / "pair" / "nan.onnx"))
    assert answer["likenesses"][0]["cosine"] is None


def test_an_output_of_another_name_is_said(studied: Path, pair: Any) -> None:
    plan, weights, _ = pair
    with pytest.raises(InputError, match=r"no output 'kind' for data\.labels; did you mean 'kinds'"):
        measured(plan, studied / "pair", graph_of(weights, studied / "pair" / "renamed.onnx", "kinds"))


def test_an_error_is_an_answer(studied: Path, tmp_path: Path) -> None:
    plan = read_plan(studied / "plan.toml")
    wrong = plan.model_copy(update={"data": plan.data.model_copy(update={"labels": {"logit": "label"}})})
    told, answer = tmp_path / "job.json", tmp_path / "answer.json"
    told.write_text(job(tmp_path, baseline("fp32"), wrong).model_dump_json())
    assert main(str(told), str(answer)) == 0
    assert json.loads(answer.read_text()) == {
        "state": "failed",
        "reason": "The model has no output 'logit' for data.labels; did you mean 'logits'?",
    }


def test_factories_that_give_no_module_are_refused(studied: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing_built.py").write_text("def build(source):\n    return 3\n")
    for name, sentence in (("build", "gives int, not a torch.nn.Module"), ("bild", "has no bild; name a function")):
        with pytest.raises(InputError, match=sentence):
            build_author(Model(source=studied, module=f"{tmp_path / 'nothing_built.py'}:{name}"), torch.float32)


def test_a_head_that_the_folder_lacks_is_not_made_up(studied: Path, tmp_path: Path) -> None:
    body = tmp_path / "body"
    shutil.copytree(studied / "model", body)
    tensors = load_file(body / "model.safetensors")
    kept = {name: array for name, array in tensors.items() if not name.startswith("classifier.")}
    assert len(kept) < len(tensors)
    save_file(kept, body / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"has no tensor 'classifier\.bias', which a model for text"):
        build_author(Model(source=body), torch.float32)
    build_author(Model(source=body, task="feature-extraction"), torch.float32)


def test_onnx_is_measured_without_pytorch() -> None:
    script = (
        "import sys, truecast.study.worker, truecast.study.opening, truecast.study.evaluating, "
        "truecast.measure.environment; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.skipif(
    find_spec("torchao") is not None, reason="torchao is installed, and the sentence is about its absence"
)
def test_torchao_that_is_not_installed_is_said(studied: Path) -> None:
    with pytest.raises(InputError, match=r"run: pip install 'truecast\[torchao\]'"):
        measure(job(studied, baseline("torchao-int8")))


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed: pip install 'truecast[torchao]'")
def test_torchao_quantizes(studied: Path, reference: Answer) -> None:
    row = Row.model_validate({"variant": baseline("torchao-int8"), **measure(job(studied, baseline("torchao-int8")))})
    assert row.lowest_cosine is not None
    assert 0.95 < row.lowest_cosine < 0.999999
