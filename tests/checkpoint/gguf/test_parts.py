"""A model in several GGUF files is the model; parts that are missing or mixed up are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.checkpoint.gguf.cases import BY_NAME
from tests.checkpoint.gguf.files import close
from truecast.checkpoint import open_checkpoint
from truecast.errors import InputError

PARTS = 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "model.gguf"
    BY_NAME["qwen2"].write(path)
    return path


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> list[Path]:
    """The same file, split by the gguf library's own writer."""
    reader = gguf.GGUFReader(whole)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen2", split_max_tensors=-(-len(reader.tensors) // PARTS))
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            kind = field.types[0]
            writer.add_key_value(key, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    close(writer)
    return sorted(tmp_path.glob("*.gguf"))


def test_the_parts_are_what_the_library_makes(parts: list[Path]) -> None:
    assert [path.name for path in parts] == [f"model-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_part_opens_the_whole_model(given: int, parts: list[Path], whole: Path) -> None:
    expected, actual = open_checkpoint(whole), open_checkpoint(parts[given])
    assert actual.config == expected.config
    assert actual.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(actual.tensors[name].read(), tensor.read())
    assert actual.files == tuple(parts)
    assert {name: make() for name, make in actual.side_files.items()} == {
        name: make() for name, make in expected.side_files.items()
    }


def test_a_folder_of_parts_is_one_model(parts: list[Path]) -> None:
    assert open_checkpoint(parts[0].parent).files == tuple(parts)


def test_parts_beside_another_model_must_be_named(parts: list[Path], whole: Path) -> None:
    (parts[0].parent / "other.gguf").write_bytes(whole.read_bytes())
    with pytest.raises(InputError, match="several GGUF files"):
        open_checkpoint(parts[0].parent)
    assert open_checkpoint(parts[1]).files == tuple(parts)


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    for left in (parts[0], parts[2]):
        with pytest.raises(InputError, match=r"one of 3 parts, of which model-00002-of-00003\.gguf are missing"):
            open_checkpoint(left)


def test_a_renamed_part_is_told_apart(parts: list[Path]) -> None:
    renamed = parts[0].with_name("model.gguf")
    parts[0].rename(renamed)
    with pytest.raises(InputError, match=r"model\.gguf is one of 3 parts, but is not named as one"):
        open_checkpoint(renamed)


def test_parts_whose_names_were_exchanged_are_refused(parts: list[Path]) -> None:
    spare = parts[0].with_name("spare")
    parts[1].rename(spare)
    parts[2].rename(parts[1])
    spare.rename(parts[2])
    with pytest.raises(InputError, match=r"00002-of-00003\.gguf is part 3 of 3 by its metadata, not 2 of 3"):
        open_checkpoint(parts[0])


def test_a_part_of_another_model_is_refused(parts: list[Path], tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "other", "qwen2")
    for key, value in {"split.no": 1, "split.count": 3}.items():
        writer.add_uint16(key, value)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(64, np.float32))
    close(writer)
    (tmp_path / "other").rename(parts[1])
    with pytest.raises(InputError, match=r"states \d+ tensors in all parts, which hold \d+"):
        open_checkpoint(parts[0])


def test_a_model_that_says_it_is_one_part_of_one_is_whole(tmp_path: Path) -> None:
    def write(count: Any) -> Path:
        case = BY_NAME["llama"]
        path = tmp_path / f"model-{count}.gguf"
        case.write(path, numbers={"split.count": count})
        return path

    for count in (0, 1):
        assert open_checkpoint(write(count)).tensors
