"""What cannot be diagnosed: one sentence, exit status 2; and data outside the folder is never opened."""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import FunctionProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from tests.hazards import weights
from tests.hazards.building import constant, layer, linear, model, node, rows, save, weight
from truecast.cli import main
from truecast.diagnosis import diagnose
from truecast.diagnosis.damage import damages
from truecast.diagnosis.diagnosing import gather
from truecast.diagnosis.loading import PROTOBUF_LIMIT
from truecast.errors import InputError


def empty(folder: Path) -> Path:
    (folder / "model.onnx").touch()
    return folder / "model.onnx"


def text(folder: Path) -> Path:
    (folder / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4cac19\nsize 12345\n")
    return folder / "model.onnx"


def noise(folder: Path) -> Path:
    (folder / "model.onnx").write_bytes(os.urandom(4096))
    return folder / "model.onnx"


def cut(folder: Path) -> Path:
    path = save(linear(), folder)
    os.truncate(path, path.stat().st_size // 2)
    return path


def huge(folder: Path) -> Path:
    with (folder / "model.onnx").open("wb") as file:
        file.truncate(PROTOBUF_LIMIT + 1)
    return folder / "model.onnx"


def broken_graph(folder: Path) -> Path:
    """A node that reads a value made by itself."""
    made = linear()
    made.graph.node[0].output[0] = "x"
    made.graph.ClearField("output")
    return save(made, folder)


def nothing_makes_it(folder: Path) -> Path:
    made = linear()
    del made.graph.initializer[:]
    return save(made, folder)


def two_models(folder: Path) -> Path:
    save(linear(), folder).rename(folder / "a.onnx")
    save(linear(), folder)
    return folder


def of_tensor(
    dims: list[int], raw: bytes | None = bytes(64), kind: int = TensorProto.FLOAT, **external: object
) -> Callable[[Path], Path]:
    """A product with such a weight; `external` are the entries of data in another file."""

    def make(folder: Path) -> Path:
        weight = TensorProto(name="w", data_type=kind, dims=dims)
        if external:
            weight.data_location = TensorProto.EXTERNAL
            for key, value in external.items():
                weight.external_data.add(key=key, value=str(value))
        elif raw is not None:
            weight.raw_data = raw
        made = linear()
        del made.graph.initializer[:]
        made.graph.initializer.append(weight)
        (folder / "data.bin").write_bytes(bytes(64))
        (folder / "model.onnx").write_bytes(made.SerializeToString())
        return folder / "model.onnx"

    return make


def of_nodes(*nodes: NodeProto, functions: Sequence[FunctionProto] = ()) -> Callable[[Path], Path]:
    """Rows through such nodes, the last of which makes y."""

    def make(folder: Path) -> Path:
        made = model(nodes, [rows()], [rows("y")])
        made.functions.extend(functions)
        return save(made, folder)

    return make


def calling(name: str, called: str) -> FunctionProto:
    """A function that is another."""
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["a"], ["b"], [node(f"own.{called}", ["a"], ["b"])], imports)


def sparse(values: int, indices: Any, shape: list[int]) -> Callable[[Path], Path]:
    """A sparse initializer with so many values."""

    def make(folder: Path) -> Path:
        made = linear()
        del made.graph.initializer[:]
        parts = constant("w", np.ones(values)), constant("", indices, np.int64)
        made.graph.sparse_initializer.append(SparseTensorProto(values=parts[0], indices=parts[1], dims=shape))
        return save(made, folder)

    return make


CASES = {
    "cycle": of_nodes(node("Add", ["x", "c"], ["a"]), node("Relu", ["a"], ["c"]), node("Relu", ["c"], ["y"])),
    "function that calls itself": of_nodes(node("own.F", ["x"], ["y"]), functions=[calling("F", "F")]),
    "functions that call each other": of_nodes(
        node("own.F", ["x"], ["y"]), functions=[calling("F", "G"), calling("G", "F")]
    ),
    "data type of a cast": of_nodes(node("Cast", ["x"], ["y"], to=999)),
    "attribute of another type": of_nodes(node("Cast", ["x"], ["y"], to="FLOAT")),
    "axis that is text": of_nodes(node("Concat", ["x", "x"], ["y"], axis="last")),
    "sparse with too few indices": sparse(3, [0, 9], [64, 64]),
    "sparse beyond its shape": sparse(2, [[0, 0], [64, 0]], [64, 64]),
    "shape far beyond the data": of_tensor([1 << 40, 1 << 20]),
    "shape that overflows": of_tensor([1 << 62, 1 << 62]),
    "negative size": of_tensor([4, -4]),
    "too few bytes": of_tensor([4, 4], bytes(10)),
    "too many bytes": of_tensor([4, 4], bytes(65)),
    "no bytes": of_tensor([4, 4], None),
    "bytes for strings": of_tensor([4, 4], kind=TensorProto.STRING),
    "no data type": of_tensor([4, 4], kind=0),
    "unknown data type": of_tensor([4, 4], kind=99),
    "negative offset": of_tensor([4, 4], location="data.bin", offset=-8, length=64),
    "offset that is no number": of_tensor([4, 4], location="data.bin", offset="zz", length=64),
    "missing": lambda folder: folder / "none.onnx",
    "no model in the folder": lambda folder: folder,
    "empty": empty,
    "text": text,
    "noise": noise,
    "cut": cut,
    "huge": huge,
    "no outputs": broken_graph,
    "two models": two_models,
    "a value that nothing makes": nothing_makes_it,
}


@pytest.mark.parametrize("case", CASES)
def test_is_refused_with_one_sentence(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = CASES[case](tmp_path)
    status = main(["diagnose", str(path)])
    printed = capsys.readouterr()
    assert (status, printed.out) == (2, "")
    assert len(printed.err.splitlines()) == 1
    assert str(tmp_path) in printed.err


def test_an_unknown_provider_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(save(linear(), tmp_path)), "--provider", "cudda"]) == 2
    assert "did you mean 'cuda'?" in capsys.readouterr().err
    with pytest.raises(InputError, match="There is no provider"):
        diagnose(save(linear(), tmp_path), "cudda")


def test_a_session_key_needs_a_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(save(linear(), tmp_path)), "--session", "session.disable_prepacking"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err


def test_a_classifier_that_returns_maps_is_read(tmp_path: Path) -> None:
    """scikit-learn's converters write them."""
    file = Path(ort.__file__).parent / "datasets" / "logreg_iris.onnx"
    assert diagnose(file).codes == ("TC301",)


def test_sparse_weights_are_weights(tmp_path: Path) -> None:
    """As an initializer and as a Constant node; ONNX Runtime loads both."""
    values, places = weight("w", 3), constant("", [1, 70, 4095], np.int64)
    dense = np.zeros(64 * 64, np.float32)
    dense[[1, 70, 4095]] = numpy_helper.to_array(values)
    held = helper.make_sparse_tensor(values, places, [64, 64])
    made = linear()
    del made.graph.initializer[:]
    made.graph.sparse_initializer.append(held)
    for write in (lambda folder: save(made, folder), of_nodes(node("Constant", [], ["w"], sparse_value=held), layer())):
        file = write(tmp_path)
        (found,) = gather(file).weights
        assert np.array_equal(found.array().reshape(-1), dense)
        assert set(diagnose(file).codes) <= {"TC309"}  # symbolic shape inference does not know them
        ort.InferenceSession(file, providers=["CPUExecutionProvider"])


def test_a_sparse_weight_that_would_be_huge_is_not_made_dense(tmp_path: Path) -> None:
    path = sparse(2, [1, 5], [1 << 40, 1 << 20])(tmp_path)
    (found,) = gather(path).weights
    assert not found.readable
    assert "TC507" not in diagnose(path).codes  # what the file holds is small


def test_nodes_in_any_order_are_read(tmp_path: Path) -> None:
    """ONNX Runtime sorts them, and so does the diagnosis."""
    path = of_nodes(node("Relu", ["m"], ["y"]), node("Relu", ["x"], ["m"]))(tmp_path)
    assert diagnose(path).findings == ()
    ort.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("external", "code"),
    [
        ({"location": "../../etc/passwd"}, "TC504"),
        ({"location": "/etc/passwd", "length": 64}, "TC504"),
        ({"location": "../../../../../dev/zero", "length": 64}, "TC504"),
        ({"location": "data\0bin", "length": 64}, "TC504"),
        ({"location": "none.bin", "length": 64}, "TC505"),
        ({"location": "."}, "TC505"),
        ({"location": "data.bin", "offset": 1 << 60, "length": 64}, "TC505"),
    ],
)
@pytest.mark.parametrize("option", ["--json", "--run", "--fix"])
def test_data_that_is_elsewhere_or_missing_is_a_finding_and_nothing_is_mended(
    external: dict[str, object], code: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = of_tensor([4, 4], **external)(tmp_path)
    status = main(["diagnose", str(path), option, "--quiet"])
    printed = capsys.readouterr()
    assert status == (2 if option == "--fix" else 1)
    assert (code in printed.out) == (option != "--fix")
    assert len(printed.err.splitlines()) == (option == "--fix")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data.bin", "model.onnx"]


@pytest.mark.parametrize("external", [{"length": 1 << 42}, {}], ids=["stated", "by the shape"])
def test_a_huge_declared_size_takes_no_memory(external: dict[str, object], tmp_path: Path) -> None:
    path = of_tensor([1 << 20, 1 << 20], location="data.bin", **external)(tmp_path)
    assert "TC505" in diagnose(path).codes


@pytest.mark.parametrize(
    ("kind", "field", "values"),
    [
        (TensorProto.FLOAT, "float_data", 6),
        (TensorProto.FLOAT16, "int32_data", 6),
        (TensorProto.INT64, "int64_data", 6),
        (TensorProto.INT4, "int32_data", 3),
        (TensorProto.COMPLEX64, "float_data", 12),
        (TensorProto.BOOL, "int32_data", 6),
        (TensorProto.STRING, "string_data", 6),
    ],
)
def test_typed_values_are_counted(kind: int, field: str, values: int) -> None:
    tensor = TensorProto(name="weight", data_type=kind, dims=[2, 3])
    getattr(tensor, field).extend([b"0"] * values if field == "string_data" else [0] * values)
    assert list(damages(GraphProto(initializer=[tensor]))) == []
    del getattr(tensor, field)[-1]
    (damage,) = damages(GraphProto(initializer=[tensor]))
    assert damage == f"weight has the shape [2, 3] and holds {values - 1} values instead of {values} values"


def test_constants_of_inner_graphs_are_looked_at() -> None:
    inner = GraphProto(node=[helper.make_node("Constant", [], ["c"], value=TensorProto(data_type=1, dims=[5]))])
    outer = GraphProto(node=[helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)])
    assert len(list(damages(outer))) == 2


@pytest.mark.parametrize("make", [weights.escaping, weights.escaping_by_link])
def test_data_outside_the_folder_is_not_opened(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, True)
    opened: list[str] = []
    real = io.open

    def spying(file: Any, *given: Any, **more: Any) -> Any:
        opened.append(str(Path(file).resolve()) if isinstance(file, str | os.PathLike) else str(file))
        return real(file, *given, **more)

    monkeypatch.setattr(io, "open", spying)
    monkeypatch.setattr(builtins, "open", spying)
    assert "TC504" in diagnose(path).codes
    assert str(path.resolve()) in opened
    assert str((tmp_path / "data.bin").resolve()) not in opened


def test_the_spy_sees_data_that_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above could not fail."""
    path = weights.missing(tmp_path, False)
    opened: list[str] = []
    real = io.open
    monkeypatch.setattr(io, "open", lambda file, *given, **more: opened.append(str(file)) or real(file, *given, **more))
    diagnose(path)
    assert any(name.endswith("data.bin") for name in opened)
