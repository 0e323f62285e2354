"""Modules in 16 bits: what is proven of them, and errors planted into them that the proof must find."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

import truecast
from tests.encoders import Blocks, Massive
from tests.proof.planting import change_data, change_graph, change_manifest, failed, node_of
from truecast import exporting_modules
from truecast.artifact import Certificate, Check, Status, read_manifest
from truecast.errors import InputError, ProofError
from truecast.halves.twin import make_twin
from truecast.proof import sessions
from truecast.proof.modules import prove_module
from truecast.trace.opening import ModuleSource

EXAMPLE = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
SOURCE = ModuleSource(module=Blocks(), example_inputs=EXAMPLE)
TWIN = "its float32 twin, rounded"
FAR = 6e4
"""Added twice, it is beyond float16, and its half is beyond no weight."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`Blocks` in a precision, not proven, made once."""
    folder = tmp_path_factory.mktemp("halves")

    def make(precision: str) -> Path:
        out = folder / precision
        if not out.exists():
            truecast.export(SOURCE.module, out, precision=precision, example_inputs=EXAMPLE, verify=False)
        return out

    return make


def reprove(folder: Path) -> Certificate:
    return prove_module(folder, SOURCE, read_manifest(folder))


def checks(certificate: Certificate) -> dict[str, Check]:
    return {check.name: check for check in certificate.checks}


class TestWhatIsProven:
    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    def test_the_twin_is_within_the_limits_of_its_depth(self, precision: str, base: Callable[[str], Path]) -> None:
        certificate = reprove(base(precision))
        assert certificate.status is Status.PROVEN, failed(certificate)
        found, epsilon = checks(certificate), {"bf16": 2.0**-8, "fp16": 2.0**-11}[precision]
        word = {"bf16": "bfloat16", "fp16": "float16"}[precision]
        leaves = sum(read_manifest(base(precision)).graph.lowered.values())
        limit = epsilon * 16 * (leaves + 1) ** 0.5
        exact = found[f"{TWIN} against the original with these weights, output"]
        own = found[f"{TWIN}, against the author's module in {word}, output"]
        error = found[f"error of {TWIN}, beside the author's module's in {word}, output"]
        assert (exact.limit, own.limit) == pytest.approx((limit, 2**0.5 * limit), rel=1e-3)
        assert exact.measured is not None and epsilon / 8 < exact.measured < limit
        assert error.measured is not None and 0.2 < error.measured < 2
        assert found["the twin rounds every result"].measured == 0

    def test_of_bfloat16_it_says_that_no_kernel_of_its_provider_ran(self, base: Callable[[str], Path]) -> None:
        certificate = reprove(base("bf16"))
        assert any(note.startswith("No bfloat16 kernel of cuda or tensorrt was run.") for note in certificate.notes)
        assert "by the tables of ONNX Runtime" in checks(certificate)["kernels"].detail
        assert not any(name.startswith("as shipped") for name in checks(certificate))

    def test_the_manifest_says_where_it_runs_and_what_stays_float32(self, base: Callable[[str], Path]) -> None:
        manifest = read_manifest(base("bf16"))
        assert (manifest.provider, manifest.graph.providers) == ("cuda", ["cuda", "tensorrt"])
        assert manifest.graph.islands == {
            "BatchNormalization_1": "cuda has no bfloat16 kernel of BatchNormalization-15"
        }
        assert [info.dtype for info in (*manifest.graph.inputs, *manifest.graph.outputs)] == ["float32", "float32"]
        assert {info.packing.split(",")[0] for info in manifest.weights} == {"dense bfloat16"}

    def test_opening_it_on_the_processor_is_one_sentence(self, base: Callable[[str], Path]) -> None:
        artifact = truecast.open(base("bf16"))
        said = "has kernels on cuda and tensorrt only, not on cpu; open it where the wheel onnxruntime-gpu is installed"
        with pytest.raises(InputError, match=said):
            artifact.session()
        with pytest.raises(InputError, match=said):
            artifact.run({"x": EXAMPLE.numpy()})


def in_graph(change: Callable[[ir.Model], None]) -> Callable[[Path], None]:
    return lambda folder: change_graph(folder, change)


def twice_rounded(array: np.ndarray) -> None:
    """The weight as if it had been float16 on the way."""
    assert SOURCE.module is not None
    weight = SOURCE.module.get_parameter("second.weight").detach().numpy().T.astype(np.float32)
    once, twice = (w.astype(ml_dtypes.bfloat16).view(np.uint16) for w in (weight, weight.astype(np.float16)))
    stored = array.view(np.uint16)
    np.testing.assert_array_equal(stored, once.ravel())
    assert 0 < (once != twice).sum() < once.size / 8
    stored[:] = twice.ravel()


def norm_inside(model: ir.Model) -> None:
    """A norm whose means are of bfloat16."""
    node = next(node for node in model.graph if node.op_type == "LayerNormalization")
    node.attributes.add(ir.AttrInt64("stash_type", ir.DataType.BFLOAT16))


def no_island(model: ir.Model) -> None:
    """The batch norm without the casts around it."""
    node = node_of(model, "BatchNormalization_1")
    for index, value in enumerate(node.inputs):
        cast = None if value is None else value.producer()
        if cast is not None and cast.op_type == "Cast":
            node.replace_input_with(index, cast.inputs[0])
    back = next(use.node for use in node.outputs[0].uses())
    ir.convenience.replace_all_uses_with(back.outputs[0], node.outputs[0])


def not_cast_back(model: ir.Model) -> None:
    """What the batch norm gives in float32, added to bfloat16."""
    back = next(use.node for use in node_of(model, "BatchNormalization_1").outputs[0].uses())
    ir.convenience.replace_all_uses_with(back.outputs[0], back.inputs[0])


def rougher(model: ir.Model) -> None:
    """A result rounded to 2 bits of fraction on the way."""
    node = next(node for node in model.graph if node.op_type == "Gelu")
    value = node.outputs[0]
    small = ir.node("Cast", [value], {"to": ir.DataType.FLOAT8E5M2}, name="small")
    back = ir.node("Cast", [small.outputs[0]], {"to": ir.DataType.BFLOAT16}, name="back")
    small.outputs[0].name, back.outputs[0].name = "small", "back"
    model.graph.insert_after(node, [small, back])
    for reader, index in list(value.uses()):
        if reader is not small:
            reader.replace_input_with(index, back.outputs[0])


def far_and_back(model: ir.Model) -> None:
    """A value times 60000 and divided by it: beyond float16 in between."""
    node = next(node for node in model.graph if node.op_type == "Gelu")
    factor = ir.node("Constant", [], {"value": ir.tensor(np.array(60000, np.float16))}, name="factor")
    factor.outputs[0].name = "factor"
    away = ir.node("Mul", [node.outputs[0], factor.outputs[0]], name="away")
    back = ir.node("Div", [away.outputs[0], factor.outputs[0]], name="back")
    away.outputs[0].name, back.outputs[0].name = "away", "back"
    model.graph.insert_after(node, [factor, away, back])
    for reader, index in list(node.outputs[0].uses()):
        if reader is not away:
            reader.replace_input_with(index, back.outputs[0])


def swapped(model: ir.Model) -> None:
    """A residual that adds another tensor of its shape."""
    node = next(node for node in model.graph if node.op_type == "Gelu")
    ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])


@dataclass(frozen=True)
class Plant:
    """An error: in which artifact, what it does, which check must fail and what its detail must say."""

    name: str
    precision: str
    spoil: Callable[[Path], None]
    fails: str
    says: str = ""


SECOND = "second.weight.transposed"
VALUES, ERROR = "weights are the checkpoint's", f"error of {TWIN}, beside the author's module's in {{}}, output"
PLANTS = [
    Plant("a weight rounded twice", "bf16", lambda it: change_data(it, SECOND, twice_rounded), VALUES, "second.weight"),
    Plant(
        "a norm of bfloat16 inside", "bf16", in_graph(norm_inside), "norms computed in float32", "LayerNormalization_1"
    ),
    Plant("an island without its casts", "bf16", in_graph(no_island), "kernels", "BatchNormalization-15"),
    Plant("the same", "bf16", in_graph(no_island), "float32 islands as in the manifest", "BatchNormalization_1"),
    Plant("two dtypes in one node", "bf16", in_graph(not_cast_back), "dtypes that the operators take", "bfloat16"),
    Plant("the same", "bf16", in_graph(not_cast_back), "onnx.checker, with inference of types", "nference"),
    Plant("a result rounded further", "bf16", in_graph(rougher), ERROR.format("bfloat16")),
    Plant("an activation left out", "bf16", in_graph(swapped), ERROR.format("bfloat16")),
    Plant("an overflow on the way", "fp16", in_graph(far_and_back), f"{TWIN} runs", "NaN or infinity"),
]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: f"{plant.precision}-{plant.name}-{plant.fails[:12]}")
def test_a_planted_error_is_found_and_named(plant: Plant, base: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base(plant.precision), tmp_path / "artifact"))
    plant.spoil(folder)
    certificate = reprove(folder)
    assert certificate.status is Status.FAILED
    found = failed(certificate)
    assert plant.fails in found, list(found)
    assert plant.says in found[plant.fails].detail


def test_the_processor_alone_would_not_have_found_the_overflow(base: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base("fp16"), tmp_path / "artifact"))
    change_graph(folder, far_and_back)
    found = checks(reprove(folder))
    assert found["as shipped against the original with these weights, output"].passed


def test_an_island_that_is_not_in_the_graph_is_found(base: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base("bf16"), tmp_path / "artifact"))
    graph = read_manifest(folder).graph
    change_manifest(folder, graph=graph.model_copy(update={"islands": {"gone": "reaches 1e+05"}}))
    assert "gone is not in the graph" in failed(reprove(folder))["float32 islands as in the manifest"].detail


def test_a_node_of_the_twin_that_does_not_round_is_found(
    base: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lax(model: ir.Model, *rest: Any) -> dict[str, str]:
        names = make_twin(model, *rest)
        narrow = next(node for node in model.graph if node.name == "Gelu_1.narrow")
        narrow.attributes.add(ir.AttrInt64("to", ir.DataType.FLOAT))
        narrow.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        return names

    monkeypatch.setattr(sessions, "make_twin", lax)
    found = failed(reprove(base("bf16")))
    assert "Gelu_1.rounded" in found["the twin rounds every result"].detail


class TestMassiveActivations:
    def test_float16_keeps_them_in_float32_islands(self, tmp_path: Path) -> None:
        module = Massive(FAR)
        made = truecast.export(module, tmp_path / "out", precision="fp16", example_inputs=EXAMPLE)
        manifest = made.manifest
        assert manifest.certificate.status is Status.PROVEN
        assert manifest.graph.islands["down.1/Add_1"] == "reaches 1.2e+05"
        assert {"down.0", "norms.1", "norms.3", "down.3"} <= set(manifest.graph.islands)
        assert not any(name.startswith(("first", "head", "up", "norms.0")) for name in manifest.graph.islands)
        assert manifest.settings["islands_measured_on"] == "the example inputs"
        said = "nodes compute in float32, since values go beyond 0.125 of float16's 65504: down.1/Add_1 reaches 1.2e+05"
        assert any(said in notice for notice in manifest.notices)
        with torch.no_grad():
            want = module.eval()(EXAMPLE).numpy()
        got = made.run({"x": EXAMPLE.numpy()})["output"]
        assert np.abs(got - want).max() < 0.01 * np.abs(want).max()

    def test_without_the_islands_the_proof_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exporting_modules, "by_reach", lambda *rest: ({}, "nothing"))
        with pytest.raises(ProofError, match=rf"{TWIN} runs .* NaN or infinity where the author's has none"):
            truecast.export(Massive(FAR), tmp_path / "out", precision="fp16", example_inputs=EXAMPLE)

    def test_where_everything_fits_there_are_none(self, tmp_path: Path) -> None:
        made = truecast.export(Massive(1), tmp_path / "out", precision="fp16", example_inputs=EXAMPLE)
        assert made.manifest.certificate.status is Status.PROVEN
        assert (made.manifest.graph.islands, made.manifest.notices) == ({}, [])

    def test_bfloat16_holds_them_but_not_what_lies_beside_them(self, tmp_path: Path) -> None:
        with pytest.raises(ProofError, match=f"{TWIN} against the original with these weights, output measured"):
            truecast.export(Massive(FAR), tmp_path / "out", precision="bf16", example_inputs=EXAMPLE)
        assert read_manifest(tmp_path / "out.rejected").graph.islands == {}

    def test_calibration_decides_what_is_far(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "far.npz", input=1e5 * EXAMPLE.numpy())
        made = truecast.export(
            torch.nn.Linear(8, 4),
            tmp_path / "out",
            precision="fp16",
            example_inputs=EXAMPLE,
            calibration=tmp_path / "far.npz",
        )
        assert made.manifest.certificate.status is Status.PROVEN
        assert len(made.manifest.graph.islands) == 2
        assert made.manifest.settings["islands_measured_on"] == "the calibration file"
        assert [info.dtype for info in (*made.manifest.graph.inputs, *made.manifest.graph.outputs)] == ["float32"] * 2
