"""What cannot be diagnosed: one sentence, exit status 2; and data outside the folder is never opened."""

from __future__ import annotations

import builtins
import io
import os
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from tests.hazards import weights
from tests.hazards.building import linear, save
from truecast.cli import main
from truecast.diagnosis import diagnose
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


def two_models(folder: Path) -> Path:
    save(linear(), folder).rename(folder / "a.onnx")
    save(linear(), folder)
    return folder


CASES = {
    "missing": lambda folder: folder / "none.onnx",
    "no model in the folder": lambda folder: folder,
    "empty": empty,
    "text": text,
    "noise": noise,
    "cut": cut,
    "huge": huge,
    "no outputs": broken_graph,
    "two models": two_models,
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
