"""--fix changes what a rule found and nothing else, promises what it does, and publishes at the end."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from tests.hazards import attention, quantization, weights
from tests.hazards.building import WIDTH, constant, layer, linear, model, node, rows, save, tensor, weight
from tests.hazards.test_fixing import external_twice, run
from truecast.cli import main
from truecast.diagnosis import diagnose, fixing, repair
from truecast.errors import InputError


def twins(*names: str) -> list[onnx.TensorProto]:
    """One matrix under several names."""
    held = [weight("w", WIDTH, WIDTH) for _ in names]
    for tensor_, name in zip(held, names, strict=True):
        tensor_.name = name
    return held


def overridable(folder: Path) -> Path:
    """The second of two equal weights can be fed."""
    made = model([layer("x", "m"), layer("m", "y", "v")], [rows()], [rows("y")], twins("w", "v"))
    made.graph.input.append(tensor("v", [WIDTH, WIDTH]))
    return save(made, folder)


def returned(folder: Path) -> Path:
    """Both of two equal weights are outputs."""
    outputs = [rows("y"), tensor("w", [WIDTH, WIDTH]), tensor("v", [WIDTH, WIDTH])]
    return save(model([layer("x", "m"), layer("m", "y", "v")], [rows()], outputs, twins("w", "v")), folder)


def branches(folder: Path) -> Path:
    """Equal weights in the two branches of an If."""
    bodies = [
        helper.make_graph([layer("x", f"y{name}", name)], name, [], [rows(f"y{name}")], twins(name)) for name in "ab"
    ]
    choice = node("If", ["yes"], ["y"], then_branch=bodies[0], else_branch=bodies[1])
    return save(model([choice], [rows(), tensor("yes", [], TensorProto.BOOL)], [rows("y")]), folder)


def normed(folder: Path) -> Path:
    """A batch norm that uses the statistics of the batch."""
    names = ["scale", "bias", "mean", "var"]
    norm = node("BatchNormalization", ["x", *names], ["y", "", ""], training_mode=1)
    norm.output[1:] = ["running_mean", "running_var"]
    return save(model([norm], [rows()], [rows("y")], [weight(name, WIDTH) for name in names]), folder)


@pytest.mark.parametrize("make", [overridable, returned, branches, normed])
def test_what_cannot_be_mended_is_found_and_not_promised(make: object, tmp_path: Path) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    found = diagnose(path)
    assert [(finding.fixable, finding.mendable) for finding in found.findings] == [(False, 0)]
    mended = repair(path, seconds=None)
    assert (mended.path, mended.codes, mended.left) == (None, (), found.codes)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_copies_too_few_for_a_finding_are_left(tmp_path: Path) -> None:
    """A clean file is not written again."""
    large = [weight(f"l{index}", 512, 512) for index in range(2)]
    nodes = [layer("x", "m"), layer("m", "y", "v"), layer("z", "z1", "l0"), layer("z1", "z2", "l1")]
    ends = [rows(), tensor("z", ["batch", 512])], [rows("y"), tensor("z2", ["batch", 512])]
    path = save(model(nodes, *ends, [*twins("w", "v"), *large]), tmp_path)
    assert diagnose(path).codes == ()
    assert repair(path, seconds=None).path is None


def test_one_of_several_that_can_be_fed_stays_feedable(tmp_path: Path) -> None:
    nodes = [layer("x", "m"), layer("m", "n", "v"), layer("n", "y", "u")]
    made = model(nodes, [rows()], [rows("y")], twins("w", "v", "u"))
    made.graph.input.append(tensor("v", [WIDTH, WIDTH]))
    path = save(made, tmp_path)
    mended = repair(path, seconds=None)
    assert (mended.mended, mended.left) == ({"TC501": 1}, ("TC501",))
    x, fed = np.ones((2, WIDTH), np.float32), np.eye(WIDTH, dtype=np.float32)
    both = [ort.InferenceSession(str(file)).run(None, {"x": x, "v": fed})[0] for file in (path, mended.path)]
    assert np.array_equal(*both)


def test_a_range_that_tied_weights_share_stays_one(tmp_path: Path) -> None:
    """What was stored once is not stored twice when something else is mended."""
    path = external_twice(tmp_path)
    made = onnx.load(path, load_external_data=False)
    tied = onnx.TensorProto()
    tied.CopyFrom(made.graph.initializer[0])
    tied.name = "tied"
    made.graph.initializer.append(tied)
    made.graph.node.append(layer("y", "z", "tied"))
    made.graph.output.append(rows("z"))
    path.write_bytes(made.SerializeToString())
    mended = repair(path, seconds=None)
    assert mended.mended == {"TC501": 1}
    assert mended.path is not None
    held = {
        e.value for t in onnx.load(mended.path, load_external_data=False).graph.initializer for e in t.external_data
    }
    assert held == {"model.fixed.onnx.data", "0", str(4 * WIDTH * WIDTH)}
    assert (tmp_path / "model.fixed.onnx.data").stat().st_size == 4 * WIDTH * WIDTH
    assert diagnose(mended.path).codes == ()


def test_scales_that_an_annotation_names_stay(tmp_path: Path) -> None:
    made = linear()
    made.graph.initializer.extend([weight("scale", WIDTH, WIDTH), weight("idle", WIDTH, WIDTH)])
    annotation = made.graph.quantization_annotation.add(tensor_name="x")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    path = save(made, tmp_path)
    (finding,) = diagnose(path).findings
    assert (finding.code, finding.nodes, finding.mendable) == ("TC508", ("idle",), 1)
    mended = repair(path, seconds=None).path
    assert mended is not None
    after = onnx.load(mended).graph
    assert [tensor_.name for tensor_ in after.initializer] == ["w", "scale"]
    assert after.quantization_annotation == made.graph.quantization_annotation


def test_files_of_ir_version_3_are_mended(tmp_path: Path) -> None:
    """There every weight is an input too, and a constant all the same."""
    nodes, held = [layer("x", "m"), layer("m", "y", "v")], twins("w", "v")
    inputs = [rows(), *(tensor(name, [WIDTH, WIDTH]) for name in "wv")]
    path = save(model(nodes, inputs, [rows("y")], held, opset=8, ir_version=3), tmp_path)
    mended = repair(path, seconds=None)
    assert mended.mended == {"TC501": 1}
    assert mended.path is not None
    assert np.array_equal(run(path), run(mended.path))
    assert [value.name for value in onnx.load(mended.path).graph.input] == ["x", "w"]


def test_constant_nodes_are_mended(tmp_path: Path) -> None:
    path = weights.constants_twice(tmp_path, True)
    mended = repair(path, seconds=None)
    assert (mended.mended, mended.left) == ({"TC501": 1}, ())
    assert mended.path is not None
    assert [each.op_type for each in onnx.load(mended.path).graph.node] == ["Constant", "MatMul", "MatMul"]


def test_all_else_in_the_file_stays(tmp_path: Path) -> None:
    path = weights.unused(tmp_path, True)
    made = onnx.load(path)
    made.doc_string, made.graph.doc_string = "made by hand", "one product"
    made.metadata_props.add(key="labels", value="cat,dog")
    path.write_bytes(made.SerializeToString())
    mended = repair(path, seconds=None).path
    assert mended is not None
    del made.graph.initializer[1]
    assert onnx.load(mended) == made


def test_what_is_left_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = weights.twice(tmp_path, True)
    made = onnx.load(path)
    made.graph.initializer.append(constant("zeros", np.zeros((WIDTH, WIDTH))))
    made.graph.node.append(node("Add", ["y", "zeros_row"], ["z"]))
    made.graph.node.insert(2, node("ReduceSum", ["zeros", "axis"], ["zeros_row"], keepdims=1))
    made.graph.initializer.append(constant("axis", [0], np.int64))
    made.graph.output.append(rows("z"))
    path.write_bytes(made.SerializeToString())
    assert main(["diagnose", str(path), "--fix"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Mended TC501 (1 change) in" in printed
    assert "Still found: TC510." in printed


def test_the_final_name_is_not_there_before_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external_twice(tmp_path)
    at_check: list[set[str]] = []
    real = fixing._checked

    def looking(*given: object) -> str:
        at_check.append({file.name for file in tmp_path.iterdir() if not file.name.startswith(".")})
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(fixing, "_checked", looking)
    repair(path, seconds=None)
    assert at_check == [{"model.onnx", "data.bin"}]
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"model.onnx", "data.bin", "model.fixed.onnx", "model.fixed.onnx.data"}


def test_data_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    path = external_twice(tmp_path)
    (tmp_path / "model.fixed.onnx.data").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        repair(path, seconds=None)
    assert (tmp_path / "model.fixed.onnx.data").read_text() == "mine"


def test_a_full_disk_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external_twice(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(100))
    with pytest.raises(InputError, match="has 100 free"):
        repair(path, seconds=None)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "data.bin"}


def test_dropout_in_a_branch_is_not_promised(tmp_path: Path) -> None:
    inner = onnx.load(attention.dropout(tmp_path, True)).graph
    del inner.input[:]
    inner.output[0].name = inner.node[-1].output[0] = "inner"
    choice = node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)
    path = save(model([choice], [rows(), tensor("yes", [], TensorProto.BOOL)], [rows("y")]), tmp_path)
    assert [(f.code, f.mendable) for f in diagnose(path).findings if f.code == "TC607"] == [("TC607", 0)]


def test_a_quantized_file_without_a_fault_that_can_be_mended_is_left(tmp_path: Path) -> None:
    path = quantization.saturating(tmp_path, True)
    assert str(repair(path, seconds=None)) == "There is nothing to mend. Still found: TC204."
