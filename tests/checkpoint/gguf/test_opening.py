"""The GGUF container and its block types; files that are not whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoint.gguf.cases import BY_NAME
from tests.checkpoint.gguf.files import Converted, add_vocabulary, close
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.gguf.container import StringArray, read_container
from truecast.errors import InputError

Kind = gguf.GGMLQuantizationType
QUANTIZED = [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0]
WIDTH = 64


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole file of a tiny Gemma 3."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    BY_NAME["gemma3"].write(path)
    return path


def with_embedding(path: Path, values: np.ndarray[Any, Any], kind: gguf.GGMLQuantizationType | None = None) -> Path:
    """A file with one block and the embedding given."""
    writer = gguf.GGUFWriter(path, "qwen2")
    for key, value in {
        "context_length": 32,
        "embedding_length": WIDTH,
        "block_count": 1,
        "feed_forward_length": 8,
        "attention.head_count": 4,
    }.items():
        writer.add_uint32(f"qwen2.{key}", value)
    writer.add_layer_norm_rms_eps(1e-6)
    add_vocabulary(writer, 97)
    writer.add_tensor("token_embd.weight", values, raw_dtype=kind)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(WIDTH, np.float32))
    close(writer)
    return path


def noise(rows: int = 97) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((rows, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_quantized_rows_decode_to_what_the_gguf_library_gives(kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    blocks = quantize(noise(), kind)
    path = with_embedding(tmp_path / "model.gguf", blocks, kind)
    tensor = open_checkpoint(path).tensors["model.embed_tokens.weight"]
    assert (tensor.shape, tensor.stored_as, tensor.nbytes) == ((97, WIDTH), kind.name, blocks.nbytes)
    np.testing.assert_array_equal(tensor.rows(13, 31), dequantize(blocks, kind)[13:31])


def test_float16_stays_float16(tmp_path: Path) -> None:
    values = noise().astype(np.float16)
    tensor = open_checkpoint(with_embedding(tmp_path / "model.gguf", values)).tensors["model.embed_tokens.weight"]
    assert tensor.dtype == np.float16
    np.testing.assert_array_equal(tensor.read(), values)


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    values = noise().astype(ml_dtypes.bfloat16)
    path = with_embedding(tmp_path / "model.gguf", values.view(np.uint8), Kind.BF16)
    tensor = open_checkpoint(path).tensors["model.embed_tokens.weight"]
    assert tensor.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(tensor.read(), values)


def test_a_type_that_cannot_be_decoded_is_named_at_opening(tmp_path: Path) -> None:
    path = with_embedding(tmp_path / "model.gguf", np.zeros((97, WIDTH), np.int32))
    with pytest.raises(InputError, match="stores tensors as I32, which cannot be decoded"):
        open_checkpoint(path)


def test_metadata_and_tensor_places_equal_those_of_the_gguf_library(tiny: Path) -> None:
    ours, theirs = read_container(tiny), gguf.GGUFReader(tiny)
    assert ours.tensors.keys() == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        entry = ours.tensors[tensor.name]
        assert (entry.offset, entry.nbytes, entry.kind) == (tensor.data_offset, tensor.n_bytes, tensor.tensor_type)
        assert entry.shape == tuple(reversed(tensor.shape.tolist()))
    for key, value in ours.metadata.items():
        field = theirs.fields[key].contents()
        plain = value.decode() if isinstance(value, StringArray) else value
        assert np.array_equal(plain, field) if isinstance(field, list) else plain == pytest.approx(field)


def test_a_float_of_the_metadata_is_the_decimal_that_was_meant(tiny: Path) -> None:
    assert open_checkpoint(tiny).config["rms_norm_eps"] == 1e-6


def test_a_folder_with_one_gguf_file_is_that_file(tiny: Path) -> None:
    assert open_checkpoint(tiny.parent).path == tiny


def test_of_several_gguf_files_in_a_folder_one_must_be_named(tiny: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(tiny.read_bytes())
    with pytest.raises(InputError, match=r"a\.gguf, b\.gguf"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kept", [0, 3, 20, 500, 0.5, 0.999])
def test_a_truncated_file_is_refused(kept: float, tiny: Path, tmp_path: Path) -> None:
    whole = tiny.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=r"cut\.gguf"):
        open_checkpoint(cut)


def test_a_file_that_lacks_the_last_byte_of_a_tensor_is_refused(tiny: Path, tmp_path: Path) -> None:
    end = max(entry.offset + entry.nbytes for entry in read_container(tiny).tensors.values())
    (tmp_path / "whole.gguf").write_bytes(tiny.read_bytes()[:end])
    (tmp_path / "cut.gguf").write_bytes(tiny.read_bytes()[: end - 1])
    open_checkpoint(tmp_path / "whole.gguf")
    with pytest.raises(InputError, match=f"ends at byte {end}, but the file has {end - 1}"):
        open_checkpoint(tmp_path / "cut.gguf")


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_bytes(b"this is a text, not a model" * 10)
    with pytest.raises(InputError, match="does not begin with GGUF"):
        open_checkpoint(tmp_path / "text.gguf")


def test_an_unknown_architecture_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "abacus")
    writer.add_tensor("token_embd.weight", noise())
    close(writer)
    with pytest.raises(InputError, match=r"'abacus'.*gemma3.*llama"):
        open_checkpoint(tmp_path / "model.gguf")


def test_an_unknown_tensor_is_refused_by_name(tmp_path: Path) -> None:
    BY_NAME["llama"].write(tmp_path / "model.gguf", {"blk.0.attn_gizmo.weight": noise()})
    with pytest.raises(InputError, match=r"blk\.0\.attn_gizmo\.weight"):
        open_checkpoint(tmp_path / "model.gguf")


def test_a_missing_block_is_noticed(tmp_path: Path) -> None:
    case = BY_NAME["llama"]
    Converted("llama", "LlamaConfig", case.settings, {**case.metadata, "block_count": 3}).write(tmp_path / "model.gguf")
    with pytest.raises(InputError, match="states 3 blocks and holds 2"):
        open_checkpoint(tmp_path / "model.gguf")


def test_a_missing_size_is_named(tmp_path: Path) -> None:
    Converted("llama", "LlamaConfig", BY_NAME["llama"].settings).write(tmp_path / "model.gguf")
    with pytest.raises(InputError, match=r"llama\.attention\.layer_norm_rms_epsilon"):
        open_checkpoint(tmp_path / "model.gguf")


def test_a_mixture_of_experts_of_another_architecture_is_refused(tmp_path: Path) -> None:
    case = BY_NAME["granite"]
    replace(case, metadata={**case.metadata, "expert_count": 8}).write(tmp_path / "model.gguf")
    with pytest.raises(InputError, match=r"mixture of experts of the architecture granite, which .* does not read"):
        open_checkpoint(tmp_path / "model.gguf")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_to_the_header_is_an_input_error_or_nothing(
    damage: list[tuple[int, int]], tiny: Path, tmp_path: Path
) -> None:
    content = bytearray(tiny.read_bytes())
    for position, value in damage:
        content[position] = value
    (tmp_path / "damaged.gguf").write_bytes(content)
    try:
        checkpoint = open_checkpoint(tmp_path / "damaged.gguf")
        for make in checkpoint.side_files.values():
            make()
        for tensor in checkpoint.tensors.values():
            tensor.rows(0, 1)
    except InputError as error:
        assert "damaged.gguf" in str(error)
