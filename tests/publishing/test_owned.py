"""Only what an artifact's manifest lists may be replaced or removed, and no input of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.publishing.folders import artifact, state
from truecast.errors import InputError
from truecast.publishing import remove_artifact, require_apart, require_free


def test_a_free_place_is_free(tmp_path: Path) -> None:
    require_free(tmp_path / "new" / "out", force=False)


def test_what_exists_stays_unless_forced(tmp_path: Path) -> None:
    out = artifact(tmp_path / "out")
    with pytest.raises(InputError, match="already exists; choose another folder or pass --force"):
        require_free(out, force=False)
    require_free(out, force=True)


def test_an_empty_folder_may_be_replaced_by_force(tmp_path: Path) -> None:
    require_free(tmp_path, force=True)


def test_a_folder_that_is_no_artifact_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not a truecast artifact, so --force will not delete it"):
        require_free(tmp_path, force=True)


@pytest.mark.parametrize("force", [True, False])
def test_a_file_is_never_replaced(force: bool, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError):
        require_free(tmp_path / "out", force)


@pytest.mark.parametrize("target", ["out", "nowhere"])
def test_a_link_is_never_replaced(target: str, tmp_path: Path) -> None:
    artifact(tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(InputError, match="is a link"):
        require_free(tmp_path / "link", force=True)


@pytest.mark.parametrize("name", [".", ".."])
def test_a_place_without_a_name_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(artifact(tmp_path / "out"))
    with pytest.raises(InputError, match="name the folder itself"):
        require_free(Path(name), force=True)


@pytest.mark.parametrize("damage", ["", "{", '{"schema_version": 99}'])
def test_an_artifact_whose_manifest_cannot_be_read_is_never_replaced(damage: str, tmp_path: Path) -> None:
    (artifact(tmp_path / "out") / "truecast.json").write_text(damage)
    with pytest.raises(InputError, match=r"cannot tell which files of .*out are truecast's"):
        require_free(tmp_path / "out", force=True)


def add_file(out: Path) -> None:
    (out / "notes.txt").write_text("mine")


def add_nested(out: Path) -> None:
    (out / "src").mkdir()
    (out / "src" / "model.safetensors").write_text("weights")


def add_empty_folder(out: Path) -> None:
    (out / "mine").mkdir()


def add_link(out: Path) -> None:
    (out / "link").symlink_to(out.parent)


def link_for_a_file(out: Path) -> None:
    (out / "content").rename(out.parent / "content")
    (out / "content").symlink_to(out.parent / "content")


FOREIGN = [add_file, add_nested, add_empty_folder, add_link, link_for_a_file]


@pytest.mark.parametrize("add", FOREIGN)
def test_an_artifact_with_something_of_the_users_in_it_is_never_replaced(
    add: Callable[[Path], None], tmp_path: Path
) -> None:
    out = artifact(tmp_path / "out")
    add(out)
    with pytest.raises(InputError, match="which truecast did not write, so --force will not replace it"):
        require_free(out, force=True)


@pytest.mark.parametrize("add", FOREIGN)
def test_removing_an_artifact_leaves_what_is_not_its_own(add: Callable[[Path], None], tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    add(artifact(alone / "out"))
    before = state(alone)
    remove_artifact(alone / "out")
    gone = {"out/truecast.json", *(["out/content"] if add is not link_for_a_file else [])}
    assert state(alone) == {name: kind for name, kind in before.items() if name not in gone}


def test_removing_an_artifact_leaves_nothing_of_it(tmp_path: Path) -> None:
    remove_artifact(artifact(tmp_path / "out"))
    assert state(tmp_path) == {}


def test_a_folder_without_a_manifest_is_not_removed(tmp_path: Path) -> None:
    add_file(tmp_path)
    remove_artifact(tmp_path)
    assert state(tmp_path) == {"notes.txt": "mine"}


# Inputs in OUT --------------------------------------------------------------------------------------------------------


def itself(out: Path) -> Path:
    return out


def inside(out: Path) -> Path:
    add_nested(out)
    return out / "src"


def a_file(out: Path) -> Path:
    return out / "content"


def dotted(out: Path) -> Path:
    return out.parent / "elsewhere" / ".." / "out" / "content"


def linked(out: Path) -> Path:
    (out.parent / "link").symlink_to(out)
    return out.parent / "link"


def linked_parent(out: Path) -> Path:
    (out.parent / "link").symlink_to(out)
    return out.parent / "link" / "content"


def folder_of_links(out: Path) -> Path:
    (out.parent / "elsewhere" / "deep").mkdir()
    (out.parent / "elsewhere" / "deep" / "model.safetensors").symlink_to(out / "content")
    return out.parent / "elsewhere"


@pytest.mark.parametrize("place", [itself, inside, a_file, dotted, linked, linked_parent, folder_of_links])
def test_an_input_in_the_folder_that_would_be_replaced_is_refused(
    place: Callable[[Path], Path], tmp_path: Path
) -> None:
    out = artifact(tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    given = place(out)
    with pytest.raises(InputError, match=f"{given} lies in {out}, which would be replaced"):
        require_apart(out, [tmp_path / "elsewhere" / "text", given])


def test_an_input_elsewhere_is_taken(tmp_path: Path) -> None:
    out = artifact(tmp_path / "out")
    (tmp_path / "out2").symlink_to(tmp_path / "source")
    require_apart(out, [artifact(tmp_path / "source"), tmp_path / "out2", tmp_path / "nowhere"])
    require_apart(tmp_path / "new", [out])
