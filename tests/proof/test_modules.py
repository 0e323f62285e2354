"""Errors planted into published modules and into traces: the proof must fail, and say what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import truecast
from tests.encoders import classifier, sentences
from tests.proof.planting import change_data, change_graph, change_manifest, failed
from truecast import exporting_modules
from truecast.artifact import Certificate, Status, read_manifest
from truecast.errors import ProofError
from truecast.proof.modules import prove_module
from truecast.trace.author import AuthorModule
from truecast.trace.module import ModuleTrace, trace_module
from truecast.trace.opening import ModuleSource

VALUES = "weights are the checkpoint's"
LOGITS = "as shipped against the original, logits"
EMBEDDING = "as shipped against the original, sentence_embedding"
EXACT = "exact products against the original with these weights, logits"
RUNS = "as shipped runs"
QUERY = "bert.encoder.layer.{}.attention.self.query"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports, not proven, each made once: `fp32` and `int8` of a classifier, `sentences` with pooling."""
    folder = tmp_path_factory.mktemp("modules")
    classifier(folder / "classifier")
    sentences(folder / "sentences-source", normalize=False)

    def make(kind: str) -> Path:
        out = folder / kind
        if not out.exists():
            source = folder / ("sentences-source" if kind == "sentences" else "classifier")
            truecast.export(source, out, precision="int8" if kind == "int8" else "fp32", verify=False)
        return out

    return make


def reprove(folder: Path) -> Certificate:
    manifest = read_manifest(folder)
    return prove_module(folder, ModuleSource(Path(manifest.source.path)), manifest)


@pytest.mark.parametrize("kind", ["fp32", "int8", "sentences"])
def test_what_is_spoiled_below_is_proven_before(kind: str, base: Callable[[str], Path]) -> None:
    certificate = reprove(base(kind))
    assert certificate.status is Status.PROVEN, failed(certificate)


@dataclass(frozen=True)
class Plant:
    """An error: in which artifact, what it does, which check must fail and what its detail must say."""

    name: str
    kind: str
    spoil: Callable[[Path], None]
    fails: str
    says: str = ""


def in_graph(change: Callable[[ir.Model], None]) -> Callable[[Path], None]:
    return lambda folder: change_graph(folder, change)


def named(model: ir.Model, op_type: str, index: int = 0) -> ir.Node:
    return [node for node in model.graph if node.op_type == op_type][index]


def bypass(node: ir.Node, index: int) -> None:
    """Everyone who read the node's result reads its input `index` instead."""
    source = node.inputs[index]
    assert source is not None
    ir.convenience.replace_all_uses_with(node.outputs[0], source)


def flip_byte(array: np.ndarray) -> None:
    array[3] ^= 0x40


def to_nan(array: np.ndarray) -> None:
    array[:4] = np.array([np.nan], np.float32).view(np.uint8)


def double(array: np.ndarray) -> None:
    array[:4] = (2 * array[:4].view(np.float32)).view(np.uint8)


def swapped_weights(model: ir.Model) -> None:
    nodes = [next(n for n in model.graph if n.name == f"{QUERY.format(layer)}.product") for layer in (0, 1)]
    left, right = (node.inputs[1] for node in nodes)
    nodes[0].replace_input_with(1, right)
    nodes[1].replace_input_with(1, left)


def wrong_epsilon(model: ir.Model) -> None:
    named(model, "LayerNormalization", 2).attributes.add(ir.AttrFloat32("epsilon", 1e-12))


def no_mask(model: ir.Model) -> None:
    """The attention of the first layer without what the mask adds to its scores."""
    scores = named(model, "Softmax").inputs[0]
    producer = None if scores is None else scores.producer()
    assert producer is not None and producer.op_type == "Add"
    bypass(producer, 0)


def baked(axis: int, size: int) -> Callable[[ir.Model], None]:
    """A size of the trace instead of a free one, where heads are told apart."""

    def change(model: ir.Model) -> None:
        node = next(it for it in model.graph if it.name == "bert.encoder.layer.0/Reshape_1")
        literal = [0, 0, 4, 16]
        literal[axis], literal[1 - axis] = size, -1
        made = ir.node("Constant", [], attributes={"value": ir.tensor(np.array(literal, np.int64))}, name="baked")
        made.outputs[0].name = "baked"
        model.graph.insert_before(node, made)
        node.replace_input_with(1, made.outputs[0])

    return change


def other_kind(op_type: str, other: str) -> Callable[[ir.Model], None]:
    def change(model: ir.Model) -> None:
        node = named(model, op_type)
        node.op_type = other
        node.attributes.clear()

    return change


def tanh_gelu(model: ir.Model) -> None:
    named(model, "Gelu").attributes.add(ir.AttrString("approximate", "tanh"))


def no_denominator(model: ir.Model) -> None:
    """The sum of a text's tokens instead of their mean."""
    mean = next(value for value in model.graph.outputs if value.name == "sentence_embedding").producer()
    assert mean is not None and mean.op_type == "Div"
    denominator = mean.inputs[1]
    assert denominator is not None
    one = ir.node("Div", [denominator, denominator], name="one")
    one.outputs[0].name = "one"
    model.graph.insert_before(mean, one)
    mean.replace_input_with(1, one.outputs[0])


def padding_counts(model: ir.Model) -> None:
    """The mean over all tokens that are there, not over those that count."""
    bypass(next(node for node in model.graph if node.name == "encoder.layer.1/Mul_2"), 0)


def renamed_output(model: ir.Model) -> None:
    model.graph.outputs[0].name = "output_0"


def fixed_input(model: ir.Model) -> None:
    model.graph.inputs[0].shape = ir.Shape([3, "sequence_length"])


def older_opset(model: ir.Model) -> None:
    model.graph.opset_imports[""] = 18


def swapped_codes(model: ir.Model) -> None:
    nodes = [next(n for n in model.graph if n.name == QUERY.format(layer)) for layer in (0, 1)]
    for index in (1, 2):
        left, right = (node.inputs[index] for node in nodes)
        nodes[0].replace_input_with(index, right)
        nodes[1].replace_input_with(index, left)


DENSE = "bert.encoder.layer.1.output.dense.weight.transposed"
CODED = "bert.encoder.layer.1.output.dense.weight"

PLANTS = [
    Plant("a changed byte of a weight", "fp32", lambda it: change_data(it, DENSE, flip_byte), VALUES, CODED),
    Plant("NaN in a weight", "fp32", lambda it: change_data(it, DENSE, to_nan), VALUES, CODED),
    Plant("weights of two layers swapped", "fp32", in_graph(swapped_weights), LOGITS),
    Plant("wrong epsilon in a norm", "fp32", in_graph(wrong_epsilon), LOGITS),
    Plant("an ignored mask", "fp32", in_graph(no_mask), LOGITS, "padding"),
    Plant("another GELU", "fp32", in_graph(tanh_gelu), LOGITS),
    Plant("the batch of the trace", "fp32", in_graph(baked(0, 3)), RUNS, "batch_size"),
    Plant("the length of the trace", "fp32", in_graph(baked(1, 17)), RUNS, "sequence_length"),
    Plant("NaN in an output", "fp32", in_graph(other_kind("Gelu", "Log")), RUNS, "logits has NaN or infinity"),
    Plant("an output renamed", "fp32", in_graph(renamed_output), RUNS, "output_0 is no output of the author's"),
    Plant("an output renamed", "fp32", in_graph(renamed_output), "interface as in the manifest"),
    Plant("a fixed input", "fp32", in_graph(fixed_input), "dynamic axes", "input_ids is [3, 'sequence_length']"),
    Plant("an older opset", "fp32", in_graph(older_opset), "operators of the stamped opset", "(Gelu)"),
    Plant("no denominator", "sentences", in_graph(no_denominator), EMBEDDING),
    Plant("padding that counts", "sentences", in_graph(padding_counts), EMBEDDING, "padding"),
    Plant("a wrong scale", "int8", lambda it: change_data(it, f"{CODED}.scales", double), VALUES, CODED),
    Plant("a changed code", "int8", lambda it: change_data(it, f"{CODED}.codes", flip_byte), VALUES, CODED),
    Plant("codes of two layers swapped", "int8", in_graph(swapped_codes), EXACT),
]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: f"{plant.kind}-{plant.name}-{plant.fails[:12]}")
def test_a_planted_error_is_found_and_named(plant: Plant, base: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base(plant.kind), tmp_path / "artifact"))
    plant.spoil(folder)
    certificate = reprove(folder)
    assert certificate.status is Status.FAILED
    found = failed(certificate)
    assert plant.fails in found, list(found)
    assert plant.says in found[plant.fails].detail


def test_bytes_that_have_changed_on_disk_are_told_by_their_hash(base: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base("fp32"), tmp_path / "artifact"))
    manifest = read_manifest(folder)
    change_data(folder, DENSE, flip_byte)
    change_manifest(folder, **{name: getattr(manifest, name) for name in ("weights", "files")})
    found = failed(truecast.open(folder).verify())
    assert any(CODED in check.detail and "hash" in name for name, check in found.items()), found


class Normed(nn.Module):
    """A batch norm, whose statistics are buffers, between two products: x [batch, 4, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 6), nn.BatchNorm1d(4), nn.Linear(6, 6)
        assert self.norm.running_mean is not None and self.norm.running_var is not None
        self.norm.running_mean.copy_(torch.tensor([0.5, -1.0, 2.0, 0.1]))
        self.norm.running_var.copy_(torch.tensor([0.3, 2.0, 1.0, 0.7]))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.norm(self.first(x))
        return {"y": y, "z": self.second(y)}


def swapped_outputs(trace: ModuleTrace) -> ModuleTrace:
    outputs = trace.model.graph.outputs
    outputs[0].name, outputs[1].name = outputs[1].name, outputs[0].name
    return trace


def swapped_statistics(trace: ModuleTrace) -> ModuleTrace:
    node = next(node for node in trace.model.graph if node.op_type == "BatchNormalization")
    mean, variance = node.inputs[3], node.inputs[4]
    node.replace_input_with(3, variance)
    node.replace_input_with(4, mean)
    return trace


def lost_axis(trace: ModuleTrace) -> ModuleTrace:
    trace.model.graph.inputs[0].shape = ir.Shape([2, 4, 6])
    return trace


@pytest.mark.parametrize(
    ("spoil", "fails"),
    [
        (swapped_outputs, "parity/without optimization against the original, y"),
        (swapped_statistics, "parity/"),
        (lost_axis, "static/dynamic axes"),
    ],
)
def test_an_error_of_the_trace_is_published_as_rejected_only(
    spoil: Callable[[ModuleTrace], ModuleTrace], fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(author: AuthorModule, *rest: Any, **options: Any) -> ModuleTrace:
        return spoil(trace_module(author, *rest, **options))

    monkeypatch.setattr(exporting_modules, "trace_module", wrong)
    with pytest.raises(ProofError, match=fails):
        truecast.export(Normed(), tmp_path / "out", example_inputs=torch.randn(2, 4, 6))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.rejected"]
    assert read_manifest(tmp_path / "out.rejected").certificate.status is Status.FAILED


def test_pooling_that_differs_from_the_authors_is_found(
    base: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is traced from another pooling than the one that the proof reads."""

    def wrong(author: AuthorModule, *rest: Any, **options: Any) -> ModuleTrace:
        finish = author.finish
        assert finish is not None
        spoiled = replace(author, finish=lambda outputs, inputs: finish(outputs, _all_ones(inputs)))
        return trace_module(spoiled, *rest, **options)

    monkeypatch.setattr(exporting_modules, "trace_module", wrong)
    with pytest.raises(ProofError, match=r"sentence_embedding measured .* padding"):
        truecast.export(base("sentences").with_name("sentences-source"), tmp_path / "out", precision="fp32")


def _all_ones(inputs: Any) -> Any:
    return {**inputs, "attention_mask": inputs["attention_mask"] * 0 + 1}


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    torch.manual_seed(0)
    yield
