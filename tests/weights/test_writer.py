"""Weights on disk: the same bytes whatever the chunks, hashed, aligned, linked, and never half written in silence."""

from __future__ import annotations

import errno
import os
import shutil
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from tests.weights.stored import random, stored, whole
from truecast.checkpoint.model import FileRange
from truecast.errors import InputError
from truecast.weights import writer
from truecast.weights.binding import Alias, Binding
from truecast.weights.floats import dense_binding
from truecast.weights.forms import quantized
from truecast.weights.precision import Precision
from truecast.weights.writer import attach, attach_links, layout, link_weights, require_space, write_weights

INT4 = Precision("int4", ir.DataType.FLOAT, 4, 32)
LARGE = (1 << 20) // (4 * 64)
"""Rows of 64 float32 that make a MiB."""


def bindings() -> list[Binding]:
    return [
        quantized("a", stored("a", random(33, 80)), INT4, transposed=False).binding,
        dense_binding("b", stored("b", random(7)), ir.DataType.FLOAT),
        dense_binding("c", stored("c", random(LARGE, 64)), ir.DataType.FLOAT),
        dense_binding("d", stored("d", random(5, 9)), ir.DataType.FLOAT16, transpose=True),
    ]


def contents(path: Path) -> dict[str, np.ndarray]:
    """Every operand as it lies in the file."""
    data = path.read_bytes()
    return {
        place.operand.name: np.frombuffer(
            data, place.operand.dtype.numpy(), int(np.prod(place.operand.shape)), place.offset
        ).reshape(place.operand.shape)
        for row in layout(bindings())[0]
        for place in row
    }


def test_every_weight_lies_at_its_place(tmp_path: Path) -> None:
    write_weights(tmp_path / "data", bindings())
    found = contents(tmp_path / "data")
    for binding in bindings():
        for operand, array in zip(binding.operands, whole(binding), strict=True):
            assert np.array_equal(found[operand.name], array)


@pytest.mark.parametrize(("chunk", "threads"), [(1, 1), (100, 2), (4097, 3), (1 << 22, 8)])
def test_chunks_of_any_size_give_the_same_bytes(
    chunk: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_weights(tmp_path / "usual", bindings())
    monkeypatch.setattr(writer, "CHUNK_WEIGHTS", chunk)
    monkeypatch.setattr(writer, "MAX_THREADS", threads)
    write_weights(tmp_path / "other", bindings())
    assert (tmp_path / "usual").read_bytes() == (tmp_path / "other").read_bytes()


def test_each_weights_hash_is_over_its_operands_in_order(tmp_path: Path) -> None:
    accounts = write_weights(tmp_path / "data", bindings())
    for account, binding in zip(accounts, bindings(), strict=True):
        joined = b"".join(array.tobytes() for array in whole(binding))
        assert account.sha256 == sha256(joined).hexdigest()
        assert account.sources == list(binding.sources)
        assert account.initializers == [operand.name for operand in binding.operands]


def test_large_tensors_start_at_64_kib_and_small_ones_at_64_bytes() -> None:
    places = {place.operand.name: place.offset for row in layout(bindings())[0] for place in row}
    assert places["c"] % (64 << 10) == 0
    assert all(offset % 64 == 0 for offset in places.values())
    assert places["b"] % (64 << 10) != 0


def test_places_do_not_overlap() -> None:
    rows, size = layout(bindings())
    spans = sorted((place.offset, place.offset + place.operand.nbytes) for row in rows for place in row)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert spans[-1][1] == size


def test_progress_counts_every_weight_once(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_weights(tmp_path / "data", bindings(), lambda done, total: seen.append((done, total)))
    total = 33 * 80 + 7 + LARGE * 64 + 5 * 9
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_damage_in_one_chunk_stops_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHUNK_WEIGHTS", 64)
    damaged = random(LARGE, 64)
    damaged[-1, -1] = np.nan
    with pytest.raises(InputError, match=rf"row {LARGE - 1}"):
        write_weights(tmp_path / "data", [dense_binding("c", stored("c", damaged), ir.DataType.FLOAT)])


def test_only_a_few_chunks_are_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHUNK_WEIGHTS", 64)
    ahead: list[int] = []
    made = 0

    def rows(start: int, stop: int) -> list[np.ndarray]:
        nonlocal made
        made += 1
        return [random(stop - start, 64)]

    plain = dense_binding("c", stored("c", random(500, 64)), ir.DataType.FLOAT)
    binding = Binding(plain.operands, plain.sources, plain.packing, 500, 64, rows)
    write_weights(tmp_path / "data", [binding], lambda done, total: ahead.append(made - done // 64))
    assert made == 500
    assert max(ahead) <= 2 * writer.MAX_THREADS + 2


def test_a_disk_without_the_space_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, size = layout(bindings())
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=size - 1))
    with pytest.raises(InputError, match="free some space or choose a folder on another disk"):
        write_weights(tmp_path / "data", bindings())
    assert not (tmp_path / "data").exists()


def test_a_disk_with_exactly_the_space_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5120))
    require_space(tmp_path, 5120)
    with pytest.raises(InputError, match=r"has 5.12 kB free, but the weights need 30.00 MB"):
        require_space(tmp_path, 30_000_000)
    with pytest.raises(InputError):
        require_space(tmp_path, 5121)


def test_a_system_without_linux_calls_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(tmp_path / "here", bindings())
    for name in ("pwrite", "sched_getaffinity"):
        monkeypatch.delattr(os, name)
    write_weights(tmp_path / "there", bindings())
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


def test_initializers_refer_to_their_place(tmp_path: Path) -> None:
    made = bindings()
    write_weights(tmp_path / "data", made)
    values = [
        ir.Value(name=operand.name, shape=ir.Shape(operand.shape), type=ir.TensorType(operand.dtype))
        for binding in made
        for operand in binding.operands
    ]
    alias = Alias("rows", "a.codes", ir.DataType.UINT8, (33, 48))
    values.append(ir.Value(name="rows", shape=ir.Shape((33, 48)), type=ir.TensorType(ir.DataType.UINT8)))
    model = ir.Model(ir.Graph([], [], nodes=[], initializers=values, name="g"), ir_version=10)
    attach(model, made, [alias], "data", tmp_path)
    tensors = {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value}
    for name, array in contents(tmp_path / "data").items():
        assert np.array_equal(tensors[name], array)
    assert np.array_equal(tensors["rows"].reshape(-1), tensors["a.codes"].reshape(-1))


# Links ----------------------------------------------------------------------------------------------------------------


def verbatim(folder: Path) -> list[Binding]:
    """Two weights whose bytes lie in one file, behind some other bytes."""
    arrays = {"a": random(3, 4), "b": random(5)}
    file, offset = folder / "source.safetensors", 24
    file.write_bytes(bytes(offset) + b"".join(array.tobytes() for array in arrays.values()))
    made = []
    for name, array in arrays.items():
        place = FileRange(file, offset, array.nbytes)
        made.append(dense_binding(name, stored(name, array, place), ir.DataType.FLOAT))
        offset += array.nbytes
    return made


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_linked_weights_are_the_same_file(linked: Path) -> None:
    link_weights(linked, verbatim(linked.parent))
    assert (linked / "source.safetensors").samefile(linked.parent / "source.safetensors")


def test_linked_weights_outlive_their_source(linked: Path) -> None:
    made = verbatim(linked.parent)
    link_weights(linked, made)
    (linked.parent / "source.safetensors").unlink()
    values = [
        ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        for name, shape in (("a", (3, 4)), ("b", (5,)))
    ]
    model = ir.Model(ir.Graph([], [], nodes=[], initializers=values, name="g"), ir_version=10)
    attach_links(model, made, linked)
    ir.save(model, linked / "model.onnx")
    offsets = {name: value.const_value for name, value in ir.load(linked / "model.onnx").graph.initializers.items()}
    for name, array in (("a", random(3, 4)), ("b", random(5))):
        tensor = offsets[name]
        assert isinstance(tensor, ir.ExternalTensor)
        data = (linked / tensor.location).read_bytes()
        assert np.frombuffer(data, np.float32, array.size, tensor.offset or 0).tolist() == array.ravel().tolist()


def test_the_hash_of_a_linked_weight_is_over_its_bytes(linked: Path) -> None:
    accounts = link_weights(linked, verbatim(linked.parent))
    assert [account.sha256 for account in accounts] == [
        sha256(array.tobytes()).hexdigest() for array in (random(3, 4), random(5))
    ]
    assert all("checkpoint's own bytes" in account.packing for account in accounts)


def test_another_disk_is_refused_with_what_to_do(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def across(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", across)
    with pytest.raises(
        InputError, match=r"cannot be linked into .* \(Invalid cross-device link\); leave --link-weights"
    ):
        link_weights(linked, verbatim(linked.parent))


def test_a_link_to_the_checkpoint_is_followed(linked: Path) -> None:
    made = verbatim(linked.parent)
    real = linked.parent / "blob"
    (linked.parent / "source.safetensors").rename(real)
    (linked.parent / "source.safetensors").symlink_to(real)
    link_weights(linked, made)
    assert not (linked / "source.safetensors").is_symlink()
    assert (linked / "source.safetensors").samefile(real)
