"""--fix mends what cannot change a result, proves it by running both files, and leaves the model itself alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.hazards import attention, weights
from tests.hazards.building import WIDTH, layer, linear, model, node, rows, save, weight
from truecast.cli import main
from truecast.diagnosis import diagnose, fixing, repair
from truecast.diagnosis.mending import Change
from truecast.errors import InputError, ProofError


def run(path: Path) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.linspace(-1, 1, 3 * WIDTH, dtype=np.float32).reshape(3, WIDTH)})
    return np.asarray(result)


def external_twice(folder: Path) -> Path:
    """Two equal matrices as external data."""
    path = weights.twice(folder, True)
    made = onnx.load(path)
    onnx.save(made, path, save_as_external_data=True, location="data.bin", size_threshold=0)
    return path


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda folder: weights.twice(folder, True), "TC501"),
        (external_twice, "TC501"),
        (lambda folder: weights.unused(folder, True), "TC508"),
        (lambda folder: attention.dropout(folder, True), "TC607"),
    ],
)
def test_mends_and_nothing_is_found_any_more(make: Callable[[Path], Path], code: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    before = path.read_bytes()
    mended = repair(path, seconds=None)
    assert mended.codes == (code,)
    assert mended.path is not None
    assert diagnose(mended.path).codes == ()
    assert path.read_bytes() == before


def test_results_are_the_same_and_the_file_is_smaller(tmp_path: Path) -> None:
    path = weights.twice(tmp_path, True)
    mended = repair(path, seconds=None).path
    assert mended is not None
    assert np.array_equal(run(path), run(mended))
    assert mended.stat().st_size < 0.6 * path.stat().st_size


def test_a_mended_dropout_is_the_identity(tmp_path: Path) -> None:
    """Run twice it gives the same, unlike before, and the same as the model without it."""
    path = attention.dropout(tmp_path, True)
    assert not np.array_equal(run(path), run(path))
    mended = repair(path, seconds=None).path
    (tmp_path / "plain").mkdir()
    assert mended is not None
    assert np.array_equal(run(mended), run(attention.dropout(tmp_path / "plain", False)))


def test_there_may_be_nothing_to_mend(tmp_path: Path) -> None:
    mended = repair(save(linear(), tmp_path), seconds=None)
    assert (mended.path, mended.codes) == (None, ())
    assert len(list(tmp_path.iterdir())) == 1


def test_never_writes_over_a_file(tmp_path: Path) -> None:
    path = weights.twice(tmp_path, True)
    (tmp_path / "model.fixed.onnx").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        repair(path, seconds=None)
    assert (tmp_path / "model.fixed.onnx").read_text() == "mine"


def test_data_outside_the_folder_is_not_copied(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="outside its folder"):
        repair(weights.escaping(tmp_path, True), seconds=None)


def test_a_mend_that_changes_the_result_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted change that lets the first product read another weight."""
    made = model(
        [layer("x", "m"), node("MatMul", ["m", "v"], ["y"])],
        [rows()],
        [rows("y")],
        [weight("w", WIDTH, WIDTH), weight("v", WIDTH, WIDTH)],
    )
    path = save(made, tmp_path)
    monkeypatch.setattr(fixing, "possible_changes", lambda evidence: {"TC501": (Change("w", "v"),)})
    with pytest.raises(ProofError, match="differs"):
        repair(path, seconds=None)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = weights.twice(tmp_path, True)
    assert main(["diagnose", str(path), "--fix"]) == 0
    assert "Mended TC501" in capsys.readouterr().out
    (tmp_path / "model.fixed.onnx").unlink()
    assert main(["diagnose", str(path), "--fix", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["repair"]["codes"] == ["TC501"]
