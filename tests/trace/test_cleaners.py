"""Clean-up by other libraries: what they get to see, what is recorded, and that a library that does harm is caught."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import truecast
from tests.encoders import classifier
from tests.traces import traced_once
from truecast.artifact import Status
from truecast.errors import InputError, ProofError
from truecast.request import Request
from truecast.request.checks import require_decoder, require_module
from truecast.runtime.encoder import Tokens
from truecast.trace import cleaners
from truecast.trace.cleaners import CLEANERS, Cleaner


@pytest.fixture(scope="module", autouse=True)
def one_trace() -> Iterator[None]:
    """The classifier is traced once."""
    with traced_once():
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("clean") / "classifier")


@pytest.fixture(scope="module")
def plain(source: Path, tmp_path_factory: pytest.TempPathFactory) -> truecast.Artifact:
    return truecast.export(source, tmp_path_factory.mktemp("plain") / "out", precision="fp32", verify=False)


@pytest.mark.parametrize("name", CLEANERS)
def test_a_library_rewrites_the_graph_and_leaves_the_weights(
    source: Path, plain: truecast.Artifact, tmp_path: Path, name: str
) -> None:
    package = CLEANERS[name].package
    pytest.importorskip(package, reason=f"{package} is not installed: pip install {package}")
    made = truecast.export(source, tmp_path / "out", precision="fp32", clean_up=name)
    assert made.manifest.certificate.status is Status.PROVEN
    record = made.manifest.settings["clean_up"]
    assert (record["library"], set(record)) == (name, {"library", "version", "nodes_before", "nodes_after"})
    before, after = (onnx.load(it.folder / "model.onnx", load_external_data=False) for it in (plain, made))
    assert (record["nodes_before"], record["nodes_after"]) == (len(before.graph.node), len(after.graph.node))
    assert record["nodes_after"] < record["nodes_before"]
    assert made.manifest.weights == plain.manifest.weights
    assert (made.folder / "model.onnx.data").read_bytes() == (plain.folder / "model.onnx.data").read_bytes()
    assert [path.name for path in made.folder.glob("*.data")] == ["model.onnx.data"]
    feeds = Tokens.open(plain.folder).batch(["a short text", "one that is a good deal longer"])
    np.testing.assert_allclose(made.run(feeds)["logits"], plain.run(feeds)["logits"], rtol=1e-4, atol=1e-5)


class Small(nn.Module):
    """Two products of one shape with a constant between; x [batch, 8]."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        self.register_buffer("shift", torch.arange(8.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.second(torch.tanh(self.first(x)) * 1.25 + self.shift))


def drop_a_node(model: onnx.ModelProto) -> None:
    tanh = next(node for node in model.graph.node if node.op_type == "Tanh")
    for node in model.graph.node:
        node.input[:] = [tanh.input[0] if name == tanh.output[0] else name for name in node.input]
    model.graph.node.remove(tanh)


def change_a_constant(model: onnx.ModelProto) -> None:
    arrays = ((tensor, onnx.numpy_helper.to_array(tensor)) for tensor in model.graph.initializer)
    found = next(tensor for tensor, array in arrays if array.shape == () and array == 1.25)
    found.CopyFrom(onnx.numpy_helper.from_array(np.array(1.26, np.float32), found.name))


def change_a_buffer(model: onnx.ModelProto) -> None:
    found = next(tensor for tensor in model.graph.initializer if tensor.name == "shift")
    array = onnx.numpy_helper.to_array(found) + np.float32(1e-5)
    found.CopyFrom(onnx.numpy_helper.from_array(array, found.name))


def swap_two_weights(model: onnx.ModelProto) -> None:
    names = [value.name for value in model.graph.input if value.name.endswith("weight.transposed")]
    others = dict(zip(names, reversed(names), strict=True))
    for node in model.graph.node:
        node.input[:] = [others.get(name, name) for name in node.input]


def bake_a_weight_in(model: onnx.ModelProto) -> None:
    value = next(value for value in model.graph.input if value.name.endswith("bias"))
    model.graph.input.remove(value)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(8, np.float32), value.name))


def fix_an_axis(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


HARM: dict[Callable[[onnx.ModelProto], None], str] = {
    drop_a_node: "parity/",
    change_a_constant: "parity/",
    change_a_buffer: "static/constants",
    swap_two_weights: "parity/",
    bake_a_weight_in: "static/weights accounted for",
    fix_an_axis: "static/dynamic axes",
}


def install(monkeypatch: pytest.MonkeyPatch, harm: Callable[[onnx.ModelProto], None]) -> None:
    """Puts a library in the place of onnxslim that does some harm."""

    def rewrite(library: object, model: onnx.ModelProto) -> onnx.ModelProto:
        assert not any(tensor.external_data for tensor in model.graph.initializer)
        harm(model)
        return model

    monkeypatch.setattr(cleaners, "CLEANERS", {"onnxslim": Cleaner("onnx", rewrite)})


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
def test_a_library_that_does_harm_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[onnx.ModelProto], None]
) -> None:
    install(monkeypatch, harm)
    with pytest.raises(ProofError) as caught:
        truecast.export(Small(), tmp_path / "out", example_inputs=torch.zeros(2, 8), clean_up="onnxslim")
    assert HARM[harm] in str(caught.value)
    assert json.loads((tmp_path / "out.rejected" / "truecast.json").read_text())["settings"]["clean_up"]


def test_a_library_that_does_nothing_is_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda model: None)
    made = truecast.export(Small(), tmp_path / "out", example_inputs=torch.zeros(2, 8), clean_up="onnxslim")
    record = made.manifest.settings["clean_up"]
    assert record["library"] == "onnx"
    assert record["nodes_before"] == record["nodes_after"]
    again = made.verify(Small(), example_inputs=torch.zeros(2, 8))
    assert again.status is Status.PROVEN


def test_what_a_library_cannot_do_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def harm(model: onnx.ModelProto) -> None:
        raise RuntimeError("no such operator.\nlong trace")

    install(monkeypatch, harm)
    with pytest.raises(InputError, match=r"^onnx \S+ cannot rewrite this graph \(no such operator\); choose another"):
        truecast.export(Small(), tmp_path / "out", example_inputs=torch.zeros(2, 8), clean_up="onnxslim")
    assert not list(tmp_path.iterdir())


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaners, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs onnxsim, which is not installed; run: pip install 'truecast\[onnxsim"):
        require_module(Request(precision="fp32", clean_up="onnxsim"))
    require_module(Request(precision="fp32"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("clean_up", "onnxscript"), ("optimization", "basic"), ("exporter", "torchscript"), ("save_optimized", True)],
)
def test_decoders_refuse_what_is_for_modules(name: str, value: object) -> None:
    option = name.replace("_", "-")
    with pytest.raises(InputError, match=f"^--{option} is for models without a cache; a decoder takes none"):
        require_decoder(Request(precision="fp32", **{name: value}))  # type: ignore[arg-type]
