"""Methods that calibrate: their libraries' part stands in, everything around it is real."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import truecast
from tests.conformance.cases import BY_NAME
from tests.proof.planting import change_data, failed
from tests.tiny import tiny_checkpoint
from truecast.artifact import Status
from truecast.calibration import libraries
from truecast.calibration.floats import float_folder
from truecast.calibration.libraries import CALIBRATED, token_rows
from truecast.checkpoint import open_checkpoint
from truecast.errors import InputError
from truecast.runtime.text import TextCodec

DATA = Path(__file__).parent.parent / "data"
TEXT = "The lighthouse keeper counts the waves at night, and writes each number down in a blue book."


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(f"{TEXT}\n\n{TEXT.upper()}\n")
    return path


# Before any work ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CALIBRATED)
def test_without_text_nothing_is_calibrated(method: str, pristine: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"--method {method} runs the model on text; give it with --calibration"):
        truecast.export(pristine, tmp_path / "out", precision="int4", method=method)


@pytest.mark.parametrize(("method", "extra"), [("gptq", "gptq"), ("awq", "auto-round"), ("auto-round", "auto-round")])
def test_a_missing_library_is_named_with_its_extra(
    method: str, extra: str, pristine: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"not installed; run: pip install 'truecast\[{extra}\]'"):
        truecast.export(pristine, tmp_path / "out", precision="int4", method=method, calibration=text)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"precision": "fp32", "method": "hqq"}, "--method hqq makes codes of floats, but fp32 has none"),
        ({"precision": "as-is", "method": "gptq"}, "--method gptq makes codes of floats, but as-is has none"),
        ({"precision": "int4", "method": "rnt"}, "no method 'rnt'; did you mean 'rtn'?"),
        ({"precision": "int8", "method": "awq"}, "--method awq makes no int8; choose --precision int4"),
        ({"precision": "fp16"}, "--calibration tells what int4 and int8 cost; fp16 has none"),
        ({"precision": "int4", "verify": False}, "--calibration is for the proof to measure on, or for gptq, awq"),
        ({"precision": "fp16", "keep": ["lm_head=int8"], "calibration": None}, "--keep does not go with fp16"),
    ],
)
def test_a_request_that_contradicts_itself_is_refused(
    options: dict[str, object], sentence: str, pristine: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        truecast.export(pristine, tmp_path / "out", **{"calibration": text, **options})  # type: ignore[arg-type]
    assert sentence in str(refused.value)
    assert not (tmp_path / "out").exists()


# Rows of tokens and folders of floats ---------------------------------------------------------------------------------


def test_rows_are_the_tokens_of_all_texts_cut_evenly(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "ROW_TOKENS", 16)
    rows = token_rows(pristine, ["a" * 20, "b" * 30])
    assert [len(row) for row in rows] == [16, 16, 16]
    first, second = (TextCodec.open(pristine).encode(text) for text in ("a" * 20, "b" * 30))
    assert [token for row in rows for token in row] == (first + second)[:48]
    monkeypatch.setattr(libraries, "MOST_ROWS", 2)
    assert len(token_rows(pristine, ["a" * 200])) == 2


def test_too_few_tokens_are_refused(pristine: Path) -> None:
    with pytest.raises(InputError, match=r"has 5 tokens; calibration needs at least 32"):
        token_rows(pristine, ["abcde"])


def test_floats_are_read_where_they_are(pristine: Path, tmp_path: Path) -> None:
    assert float_folder(open_checkpoint(pristine), tmp_path / "floats") == pristine
    assert not (tmp_path / "floats").exists()


def test_a_quantized_checkpoint_is_decoded_for_the_library(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(DATA / "gptqmodel-act-order")
    folder = float_folder(checkpoint, tmp_path / "floats")
    tensors = load_file(folder / "model.safetensors")
    assert set(tensors) == set(checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items():
        assert np.array_equal(tensors[name].astype(np.float32), tensor.read().astype(np.float32)), name
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert (folder / "tokenizer.json").is_file()


# The whole way, the library's own checkpoint standing in for its work -------------------------------------------------


def library_that_gives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "_run", lambda job, scratch: folder)
    monkeypatch.setattr(libraries, "find_spec", lambda name: True)
    monkeypatch.setattr(libraries, "version", lambda name: "7.7.0")


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    """Floats that a committed GPTQ checkpoint might have been made from: its own, decoded."""
    return float_folder(open_checkpoint(DATA / "gptqmodel-act-order"), tmp_path / "source")


@pytest.fixture
def gptq(floats: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> truecast.Artifact:
    library_that_gives(DATA / "gptqmodel-act-order", monkeypatch)
    return truecast.export(
        floats, tmp_path / "out", precision="int4", method="gptq", calibration=text, keep=["embed_tokens=int8"]
    )


def test_what_the_library_made_is_kept_as_it_is_and_proven(gptq: truecast.Artifact, floats: Path, text: Path) -> None:
    manifest = gptq.manifest
    assert (manifest.precision, manifest.source.path) == ("int4", str(floats))
    assert manifest.settings["library"] == "gptqmodel 7.7.0" and manifest.settings["method"] == "gptq"
    assert manifest.settings["keep"] == ["embed_tokens=int8"]
    checks = {check.name for check in manifest.certificate.checks}
    assert manifest.certificate.status is Status.PROVEN
    assert {"weights are the checkpoint's", "price of the format, calibration text, mean KL"} <= checks
    own = [info for info in manifest.weights if info.own]
    assert own and all("own codes" in info.packing for info in own)
    assert [path.name for path in gptq.folder.parent.iterdir() if path.name.startswith(".")] == []


def test_its_noise_is_against_the_floats(gptq: truecast.Artifact) -> None:
    noise = gptq.manifest.certificate.signal_to_noise
    assert noise["model.layers.0.self_attn.q_proj.weight"] is None  # the floats are the decoded codes themselves
    assert 30 < (noise["model.embed_tokens.weight"] or 0) < 60


def test_it_can_be_verified_without_the_library(gptq: truecast.Artifact) -> None:
    certificate = gptq.verify()
    assert certificate.status is Status.PROVEN, failed(certificate)
    assert any("is not kept" in note for note in certificate.notes)
    values = next(check for check in certificate.checks if check.name == "weights are the checkpoint's")
    assert "down_proj" not in values.detail  # of what the library left alone, only


def test_what_changed_since_then_is_found_without_the_library(gptq: truecast.Artifact) -> None:
    def spoil(array: np.ndarray) -> None:
        array[:] = 0

    name = next(
        n for info in gptq.manifest.weights if info.own for n in info.initializers if "down_proj.weight.sc" in n
    )
    change_data(gptq.folder, name, spoil)
    assert "weights are like the source's" in failed(gptq.verify())


def test_a_rule_may_not_name_what_the_library_quantized(
    floats: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library_that_gives(DATA / "gptqmodel-act-order", monkeypatch)
    with pytest.raises(InputError, match="--keep names weights that --method gptq has quantized"):
        truecast.export(
            floats, tmp_path / "out", precision="int4", method="gptq", calibration=text, keep=["layers.0.*=fp32"]
        )
    assert not (tmp_path / "out").exists()


def test_a_library_that_fails_is_quoted(
    pristine: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda name: True)
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho working\necho 'ValueError: 112 is no multiple'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(InputError, match=r"--method gptq failed in its library: working / ValueError: 112 is no"):
        truecast.export(pristine, tmp_path / "out", precision="int4", method="gptq", calibration=text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["python", "text.txt"]


# The libraries themselves, where they are installed -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", CALIBRATED)
def test_the_library_itself(method: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = CALIBRATED[method]
    if find_spec(library.package) is None:
        pytest.skip(f"{library.package} is not installed: pip install 'truecast[{library.extra}]'")
    monkeypatch.setattr(libraries, "AUTO_ROUND_STEPS", 2)
    source = tiny_checkpoint(BY_NAME["qwen2"], tmp_path / "source")
    artifact = truecast.export(
        source, tmp_path / "out", precision="int4", method=method, calibration=text, block_size=16
    )
    assert artifact.manifest.certificate.status is Status.PROVEN
    assert sum(info.own for info in artifact.manifest.weights) > 2
