"""A proof against another model says nothing, so it is refused: one sentence, no failed proof."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from truecast.artifact import Certificate, Status
from truecast.errors import InputError
from truecast.proof import verify


@pytest.fixture
def other(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the source, whose configuration a test changes."""
    return Path(shutil.copytree(pristine, tmp_path / "other"))


def change(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | changes))


@pytest.mark.parametrize(
    "changes", [{"model_type": "gemma"}, {"hidden_size": 32}, {"vocab_size": 7}, {"num_key_value_heads": 4}]
)
def test_a_checkpoint_of_other_sizes_is_refused(
    changes: dict[str, Any], other: Path, pristine_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truecast.proof.verifying.prove", lambda *_, **__: pytest.fail("it was proven"))
    change(other, **changes)
    with pytest.raises(InputError, match=f"is not what .* was made from .its {next(iter(changes))} is "):
        verify(pristine_artifact, other)


@pytest.mark.parametrize("error", [IndexError("3"), KeyError("x"), ValueError("shapes"), RuntimeError("size")])
def test_what_breaks_against_other_files_is_the_pairing(
    error: Exception, other: Path, pristine_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("truecast.proof.verifying.prove", broken)
    with (other / "model.safetensors").open("ab") as file:
        file.truncate(file.tell() - 4)
        file.write(b"abcd")
    with pytest.raises(InputError, match="and cannot be compared with it"):
        verify(pristine_artifact, other)
    with pytest.raises(type(error)):
        verify(pristine_artifact)


def test_a_config_that_was_changed_in_the_artifact_is_a_failed_check(
    pristine: Path, pristine_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(pristine_artifact, tmp_path / "artifact"))
    change(folder, hidden_size=32)
    proven = Certificate(status=Status.PROVEN)
    monkeypatch.setattr("truecast.proof.verifying.prove", lambda *_, **__: proven)
    found = verify(folder, pristine)
    assert found.status is Status.FAILED
    assert [check.detail for check in found.checks if not check.passed] == ["config.json has changed"]


def test_what_the_proof_of_a_checkpoint_would_not_look_at_is_refused(pristine_artifact: Path) -> None:
    with pytest.raises(InputError, match="not from a module; give the path"):
        verify(pristine_artifact, module=object())
    with pytest.raises(InputError, match="example_inputs go with a module"):
        verify(pristine_artifact, example_inputs=[1])
