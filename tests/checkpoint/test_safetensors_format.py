"""The safetensors reader: what the library writes is read back byte for byte; broken files are named."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from truecast.checkpoint.safetensors_format import (
    INDEX_NAME,
    SINGLE_NAME,
    read_file,
    read_folder_tensors,
    read_metadata,
)
from truecast.errors import InputError

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

tensors_strategy = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
        lambda name: name != "__metadata__"
    ),
    st.tuples(st.sampled_from(sorted(TORCH_DTYPES)), st.lists(st.integers(0, 5), max_size=4)),
    min_size=1,
    max_size=6,
)


def random_tensor(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (size,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


def to_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=tensors_strategy)
def test_what_the_library_writes_is_read_back_byte_for_byte(
    layout: dict[str, tuple[str, list[int]]], tmp_path: Path
) -> None:
    written = {
        name: random_tensor(TORCH_DTYPES[dtype], shape, seed)
        for seed, (name, (dtype, shape)) in enumerate(layout.items())
    }
    save_file(written, tmp_path / "t.safetensors")
    tensors = read_file(tmp_path / "t.safetensors")
    assert tensors.keys() == written.keys()
    for name, tensor in tensors.items():
        values = tensor.read()
        assert (tensor.stored_as, list(tensor.shape)) == layout[name]
        assert (values.dtype, values.shape) == (tensor.dtype, tensor.shape)
        assert values.tobytes() == to_bytes(written[name])
        assert tensor.nbytes == len(values.tobytes())


def test_bfloat16_values_are_the_numbers_that_were_saved(tmp_path: Path) -> None:
    saved = torch.tensor([[1.5, -2.25], [3e38, 1e-30]], dtype=torch.bfloat16)
    save_file({"w": saved}, tmp_path / "t.safetensors")
    values = read_file(tmp_path / "t.safetensors")["w"].read()
    assert values.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(values.astype(np.float32), saved.float().numpy())


def test_rows_are_a_view_of_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(7), "w": torch.arange(24).reshape(6, 4)}, tmp_path / "t.safetensors")
    tensor = read_file(tmp_path / "t.safetensors")["w"]
    rows = tensor.rows(2, 5)
    assert not rows.flags.owndata
    assert not rows.flags.writeable
    np.testing.assert_array_equal(rows, np.arange(24).reshape(6, 4)[2:5])


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 0), (4, 100), (5, 2), (-2, None)])
def test_rows_are_clipped_as_a_slice_is(start: int, stop: int | None, tmp_path: Path) -> None:
    save_file({"w": torch.arange(12).reshape(6, 2), "z": torch.ones(9)}, tmp_path / "t.safetensors")
    tensor = read_file(tmp_path / "t.safetensors")["w"]
    np.testing.assert_array_equal(tensor.rows(start, stop), np.arange(12).reshape(6, 2)[start:stop])


def test_the_location_names_the_bytes_in_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3), "w": torch.arange(5)}, tmp_path / "t.safetensors")
    tensor = read_file(tmp_path / "t.safetensors")["w"]
    location = tensor.location
    assert tensor.verbatim
    raw = location.path.read_bytes()[location.offset : location.offset + location.length]
    assert raw == np.arange(5).tobytes()


def write_raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded) if length is None else length) + encoded + data)
    return path


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty": (lambda path: (path.write_bytes(b""), path)[1], "header"),
    "shorter than a length": (lambda path: (path.write_bytes(b"abc"), path)[1], "header"),
    "header longer than the file": (lambda path: write_raw(path, {}, length=1 << 40), "only"),
    "header not JSON": (lambda path: write_raw(path, b"{not json"), "not JSON"),
    "header not UTF-8": (lambda path: write_raw(path, b"\xff\xfe\xfa"), "not JSON"),
    "header a list": (lambda path: write_raw(path, []), "not a JSON object"),
    "entry without shape": (lambda path: write_raw(path, {"w": {"dtype": "F32"}}), "tensor w lacks"),
    "offsets not a pair": (
        lambda path: write_raw(path, {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"1234"),
        "tensor w lacks",
    ),
    "negative offset": (lambda path: write_raw(path, {"w": entry(-4, 4, [2])}, b"12345678"), "no whole number"),
    "fractional shape": (lambda path: write_raw(path, {"w": entry(0, 4, [1.0])}, b"1234"), "no whole number"),
    "unknown type": (lambda path: write_raw(path, {"w": entry(0, 4, [1], "F31")}, b"1234"), "F31"),
    "size is not shape times type": (lambda path: write_raw(path, {"w": entry(0, 8, [3])}, b"12345678"), "8 bytes"),
    "past the end of the file": (lambda path: write_raw(path, {"w": entry(0, 8)}, b"1234"), "ends at byte 8 of 4"),
    "overlap": (lambda path: write_raw(path, {"v": entry(0, 8), "w": entry(4, 12)}, b"1" * 12), "overlaps"),
    "hole": (lambda path: write_raw(path, {"v": entry(0, 4), "w": entry(8, 12)}, b"1" * 12), "hole"),
    "bytes after the last tensor": (lambda path: write_raw(path, {"w": entry(0, 4)}, b"12345678"), "belong to none"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_its_name_and_the_reason(case: str, tmp_path: Path) -> None:
    make, reason = BROKEN[case]
    path = make(tmp_path / "broken.safetensors")
    with pytest.raises(InputError, match=reason) as caught:
        read_file(path)
    assert str(path) in str(caught.value)


def test_a_download_that_stopped_half_way_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(100)}, tmp_path / "t.safetensors")
    whole = (tmp_path / "t.safetensors").read_bytes()
    (tmp_path / "t.safetensors").write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"t\.safetensors is truncated or corrupt"):
        read_file(tmp_path / "t.safetensors")


def test_a_file_that_shrinks_while_it_is_read_is_an_input_error(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(100)}, tmp_path / "t.safetensors")
    tensor = read_file(tmp_path / "t.safetensors")["w"]
    (tmp_path / "t.safetensors").write_bytes(b"gone")
    with pytest.raises(InputError, match="changed while it was being read"):
        tensor.read()


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": torch.arange(3), "b": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"c": torch.zeros(4)}, tmp_path / "two.safetensors")
    weight_map = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    (tmp_path / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


def test_shards_are_found_through_the_index(sharded: Path) -> None:
    tensors = read_folder_tensors(sharded)
    assert tensors is not None
    assert {name: tensor.location.path.name for name, tensor in tensors.items()} == {
        "a": "one.safetensors",
        "b": "one.safetensors",
        "c": "two.safetensors",
    }
    with safe_open(sharded / "one.safetensors", "np") as file:
        np.testing.assert_array_equal(tensors["a"].read(), file.get_tensor("a"))


def test_a_shard_that_is_missing_is_named(sharded: Path) -> None:
    (sharded / "two.safetensors").unlink()
    for read in (read_folder_tensors, read_metadata):
        with pytest.raises(InputError, match=r"names the shard two\.safetensors, which is not in"):
            read(sharded)


def test_a_tensor_that_is_not_in_its_shard_is_named(sharded: Path) -> None:
    save_file({"d": torch.zeros(4)}, sharded / "two.safetensors")
    with pytest.raises(InputError, match=r"tensor c is in two\.safetensors, but it is not"):
        read_folder_tensors(sharded)


def test_shards_may_lie_in_subfolders(sharded: Path) -> None:
    (sharded / "weights").mkdir()
    for name in ("one", "two"):
        (sharded / f"{name}.safetensors").rename(sharded / "weights" / f"{name}.safetensors")
    index = (sharded / INDEX_NAME).read_text()
    (sharded / INDEX_NAME).write_text(index.replace("one.s", "weights/one.s").replace("two.s", "weights/two.s"))
    tensors = read_folder_tensors(sharded)
    assert tensors is not None
    assert tensors["c"].location.path == sharded / "weights" / "two.safetensors"


def test_a_shard_gives_what_the_index_forgot_and_the_last_one_wins(sharded: Path) -> None:
    save_file({"b": torch.full((2,), 9.0), "c": torch.zeros(4), "d": torch.ones(1)}, sharded / "two.safetensors")
    tensors = read_folder_tensors(sharded)
    assert tensors is not None
    assert sorted(tensors) == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(tensors["b"].read(), [9.0, 9.0])


def test_the_file_that_the_configuration_names_comes_before_others(sharded: Path) -> None:
    save_file({"a": torch.zeros(3)}, sharded / SINGLE_NAME)
    named = read_folder_tensors(sharded, "one.safetensors")
    index = read_folder_tensors(sharded, INDEX_NAME)
    assert named is not None
    assert index is not None
    assert (sorted(named), sorted(index)) == (["a", "b"], ["a", "b", "c"])


@pytest.mark.parametrize(
    ("named", "reason"),
    [("../one.safetensors", "no safetensors file or index in"), ("a.bin", "no saf"), ("a.safetensors", "is not there")],
)
def test_a_named_file_that_cannot_be_taken_is_refused(named: str, reason: str, sharded: Path) -> None:
    for read in (read_folder_tensors, read_metadata):
        with pytest.raises(InputError, match=reason):
            read(sharded, named)


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}', b'{"weight_map": {"a": "../one.safetensors"}}'],
)
def test_an_index_that_cannot_be_read_is_refused(content: bytes, sharded: Path) -> None:
    (sharded / INDEX_NAME).write_bytes(content)
    with pytest.raises(InputError, match="weight_map"):
        read_folder_tensors(sharded)


def test_the_texts_of_a_file_are_read(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / SINGLE_NAME, metadata={"format": "pt", "w": '{"_type": "Tensor"}'})
    assert read_metadata(tmp_path) == {"format": "pt", "w": '{"_type": "Tensor"}'}
    assert list(read_file(tmp_path / SINGLE_NAME)) == ["w"]


def test_a_file_or_a_folder_without_texts_has_none(tmp_path: Path) -> None:
    assert read_metadata(tmp_path) == {}
    save_file({"w": torch.zeros(2)}, tmp_path / SINGLE_NAME)
    assert read_metadata(tmp_path) == {}


def test_the_texts_of_all_shards_are_merged(sharded: Path) -> None:
    save_file({"a": torch.arange(3), "b": torch.ones(2)}, sharded / "one.safetensors", {"format": "pt", "a": "first"})
    save_file({"c": torch.zeros(4)}, sharded / "two.safetensors", {"format": "pt", "c": "second"})
    assert read_metadata(sharded) == {"format": "pt", "a": "first", "c": "second"}


@pytest.mark.parametrize("metadata", [["a"], {"a": 1}, "text"])
def test_metadata_that_are_no_texts_are_refused(metadata: Any, tmp_path: Path) -> None:
    write_raw(tmp_path / SINGLE_NAME, {"__metadata__": metadata, "w": entry(0, 4)}, b"1234")
    with pytest.raises(InputError, match="do not map names to texts"):
        read_metadata(tmp_path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b'{"a": {}, "b": {}, "a": {}}', "its header is not JSON (it names a twice)"),
        (b'{"\\ud800": {}}', "surrogates not allowed"),
    ],
)
def test_names_that_stand_twice_or_are_no_text_are_refused(header: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError) as refused:
        read_file(file)
    assert said in str(refused.value)
