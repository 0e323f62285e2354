"""Publishing never loses what was there, whenever a run ends and whoever else runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.publishing.folders import REJECTED, artifact, content, fill, state
from truecast.artifact import Manifest
from truecast.errors import InputError, ProofError
from truecast.publishing import publish, published
from truecast.publishing.staging import discard


@pytest.fixture(params=["in one step", "in two renames"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A system that can exchange folders, and one that cannot."""
    if request.param == "in two renames":
        monkeypatch.setattr(publish, "exchange", lambda first, second: False)
    return str(request.param)


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def test_a_new_artifact_stands_alone(tmp_path: Path) -> None:
    out = published(tmp_path / "deep" / "out", fill)
    assert content(out) == "new"
    assert names(tmp_path / "deep") == ["out"]


def test_an_error_names_out_and_not_the_folder_of_the_run(tmp_path: Path) -> None:
    def fail(folder: Path) -> Manifest:
        raise InputError(f"{folder / 'model.onnx'} cannot be used.")

    with pytest.raises(InputError) as caught:
        published(tmp_path / "out", fail)
    assert str(caught.value) == f"{tmp_path / 'out' / 'model.onnx'} cannot be used."


def test_an_artifact_is_replaced(system: str, tmp_path: Path) -> None:
    artifact(tmp_path / "out")
    published(tmp_path / "out", fill, force=True)
    assert content(tmp_path / "out") == "new"
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    published(tmp_path / "out", fill, force=True)
    assert names(tmp_path / "out") == ["content", "truecast.json"]


@pytest.mark.parametrize("failure", [OSError("full"), KeyboardInterrupt(), InputError("damaged"), MemoryError()])
def test_a_run_that_fails_leaves_everything_as_it_was(failure: BaseException, system: str, tmp_path: Path) -> None:
    def make(folder: Path) -> Manifest:
        fill(folder)
        (folder.parent / "scratch").mkdir()
        raise failure

    artifact(tmp_path / "out")
    before = state(tmp_path)
    for out in (tmp_path / "out", tmp_path / "new" / "deep" / "out"):
        with pytest.raises(InputError if isinstance(failure, OSError) else type(failure)):
            published(out, make, force=True)
    assert state(tmp_path) == before


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"file cannot be written to \(Not a directory\); choose another folder"):
        published(tmp_path / "file" / "out", fill)


# What is the user's ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [".out.partial", ".out.old", "out.rejected", ".out.partial-0123456789ab", "out.rejected-2", ".calibration.x"],
)
@pytest.mark.parametrize("manifest", [None, REJECTED])
def test_folders_beside_it_are_the_users(name: str, manifest: Manifest | None, tmp_path: Path) -> None:
    (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / name / "deep" / "thesis.txt").write_text("years of work")
    (tmp_path / name / "claim").write_text("of the user")
    if manifest is not None:  # even where the folder was truecast's once
        shutil.copytree(artifact(tmp_path / "copy", manifest=manifest), tmp_path / name, dirs_exist_ok=True)
    before = state(tmp_path / name)
    published(tmp_path / "out", fill)
    with pytest.raises(ProofError):
        published(tmp_path / "out", lambda folder: fill(folder, "new", REJECTED), force=True)
    assert state(tmp_path / name) == before


def test_what_the_user_put_there_in_the_last_moment_stays(system: str, tmp_path: Path) -> None:
    def make(folder: Path) -> Manifest:
        (tmp_path / "out" / "notes.txt").write_text("mine")
        return fill(folder)

    artifact(tmp_path / "out")
    with pytest.raises(InputError, match=r"holds notes.txt, which truecast did not write"):
        published(tmp_path / "out", make, force=True)
    assert (content(tmp_path / "out"), names(tmp_path)) == ("old", ["out"])


def test_what_comes_between_the_last_look_and_the_exchange_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange, asked = publish.exchange, []

    def late(first: Path, second: Path) -> bool:
        if not asked:
            (tmp_path / "out" / "notes.txt").write_text("mine")
        asked.append(first)
        return exchange(first, second)

    artifact(tmp_path / "out")
    monkeypatch.setattr(publish, "exchange", late)
    with pytest.raises(InputError, match=r"holds notes.txt"):
        published(tmp_path / "out", fill, force=True)
    assert state(tmp_path)["out/notes.txt"] == "mine"
    assert (content(tmp_path / "out"), names(tmp_path)) == ("old", ["out"])


# Folders whose proof failed -------------------------------------------------------------------------------------------


def rejected(out: Path, text: str) -> Path:
    with pytest.raises(ProofError, match="It is kept in") as error:
        published(out, lambda folder: fill(folder, text, REJECTED), force=True)
    assert error.value.kept is not None
    return error.value.kept


def test_a_rejected_folder_is_kept_beside_out_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    artifact(tmp_path / "out", "old")
    for text in ("first", "second"):
        assert rejected(tmp_path / "out", text) == tmp_path / "out.rejected"
    assert (content(tmp_path / "out"), content(tmp_path / "out.rejected")) == ("old", "second")
    assert names(tmp_path) == ["out", "out.rejected"]


def a_proven_artifact(place: Path) -> None:
    artifact(place)


def a_link(place: Path) -> None:
    place.symlink_to(artifact(place.with_name("elsewhere"), manifest=REJECTED))


def a_file(place: Path) -> None:
    place.write_text("mine")


def an_empty_folder(place: Path) -> None:
    place.mkdir()


@pytest.mark.parametrize("make", [a_proven_artifact, a_link, a_file, an_empty_folder])
def test_a_rejected_folder_takes_a_free_name(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "out.rejected")
    before = state(tmp_path)
    for text in ("first", "second"):
        assert rejected(tmp_path / "out", text) == tmp_path / "out.rejected-2"
    assert before.items() <= state(tmp_path).items()
    assert content(tmp_path / "out.rejected-2") == "second"


# Two runs at a time ---------------------------------------------------------------------------------------------------


def test_a_second_run_into_the_same_folder_is_refused_before_work(tmp_path: Path) -> None:
    def make(folder: Path) -> Manifest:
        with pytest.raises(InputError, match=r"Another export is writing .*out; wait for it"):
            published(tmp_path / "out", lambda folder: pytest.fail("it worked"))
        published(tmp_path / "other", fill)
        return fill(folder)

    published(tmp_path / "out", make)
    assert names(tmp_path) == ["other", "out"]


def test_a_run_whose_place_was_taken_meanwhile_is_refused(tmp_path: Path) -> None:
    def make(folder: Path) -> Manifest:
        published(tmp_path / "out", lambda other: fill(other, "another"), force=True)
        return fill(folder)

    with pytest.raises(InputError, match="already exists"):
        published(tmp_path / "out", make)
    assert (content(tmp_path / "out"), names(tmp_path)) == ("another", ["out"])


def test_of_two_runs_by_force_the_later_one_stays_whole(system: str, tmp_path: Path) -> None:
    def make(folder: Path) -> Manifest:
        fill(folder, "first")
        published(tmp_path / "out", lambda other: fill(other, "second"), force=True)
        assert content(folder) == "first"
        return fill(folder, "first")

    published(tmp_path / "out", make, force=True)
    assert (content(tmp_path / "out"), names(tmp_path)) == ("first", ["out"])


# Runs that are killed -------------------------------------------------------------------------------------------------


STEPS = (
    (Path, "mkdir"),
    (Path, "rename"),
    (Path, "unlink"),
    (Path, "rmdir"),
    (shutil, "rmtree"),
    (publish, "exchange"),
)


def killed_at(step: int, run: Callable[[], Any]) -> bool:
    """Ends a copy of this process before the step-th change that `run` makes on the disk; False when done."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    steps = 0

    def ending(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == step:
                os._exit(9)
            return original(*args, **kwargs)

        return call

    try:
        for owner, name in STEPS:
            setattr(owner, name, ending(getattr(owner, name)))
        run()
    finally:
        os._exit(0)
    return False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills copies of this process")
def test_a_kill_at_any_moment_leaves_the_old_artifact_or_the_new(system: str, tmp_path: Path) -> None:
    out, seen = artifact(tmp_path / "out"), set()
    for step in count(1):
        if not killed_at(step, lambda: published(out, fill, force=True)):
            break
        if system == "in one step":
            assert content(out) in ("old", "new")
        with pytest.raises(InputError, match="damaged"):  # the next run, which also fails, tidies up
            published(out, fails, force=True)
        seen.add(content(out))
        left = [folder for folder in tmp_path.iterdir() if folder.name != "out"]
        assert [file.stat().st_size for folder in left for file in folder.rglob("*")] in ([], [0])  # not claimed yet
        for folder in (*left, out):
            shutil.rmtree(folder)
        artifact(out)
    assert seen == {"old", "new"}


def fails(folder: Path) -> Manifest:
    raise InputError("damaged")


def test_in_what_was_replaced_a_file_of_the_user_stays(tmp_path: Path) -> None:
    run = tmp_path / ".out.partial-0123456789ab"
    (artifact(run / "replaced") / "notes.txt").write_text("mine")
    (run / "scratch").mkdir()
    discard(run, artifact(tmp_path / "out"))
    assert names(run) == ["replaced"]
    assert names(run / "replaced") == ["notes.txt"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills copies of this process")
def test_a_copy_of_what_a_killed_run_left_is_the_users(tmp_path: Path) -> None:
    assert killed_at(4, lambda: published(tmp_path / "out", fill))
    (left,) = tmp_path.iterdir()
    kept = left.rename(tmp_path / "kept")
    shutil.copytree(kept, left)
    before = state(tmp_path)
    published(tmp_path / "out", fill)
    after = state(tmp_path)
    assert before.items() <= after.items()
