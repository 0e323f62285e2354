"""GGUF's blocks as encodings: bit for bit what the gguf package decodes, whatever the blocks hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

from tests.checkpoint.gguf.cases import BY_NAME
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.encoding import Affine, Codebook, Encoding, decode, integer_image
from truecast.checkpoint.gguf import encodings
from truecast.checkpoint.gguf.encodings import LAYOUTS, encoding_of

Kind = gguf.GGMLQuantizationType
Bytes = np.ndarray[Any, Any]

HALVES = {
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_1: (0, 2),
    Kind.Q5_1: (0, 2),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
    Kind.TQ1_0: (52,),
    Kind.TQ2_0: (64,),
    Kind.MXFP4: (),
    Kind.IQ1_M: (),
}
"""Bytes within a block where a float16 begins; 0 for all others."""


def random_rows(kind: gguf.GGMLQuantizationType, rows: int, blocks: int, halves: Bytes | None = None) -> Bytes:
    """Any bytes, but for the float16 numbers: `halves`, or such as weights have."""
    generator = np.random.default_rng(0)
    size, count = int(GGML_QUANT_SIZES[kind][1]), rows * blocks
    raw = generator.integers(0, 256, (count, size), np.uint8)
    given = (generator.standard_normal(2 * count) / 64).astype("<f2") if halves is None else halves
    for start, values in zip(HALVES.get(kind, (0,)), given.reshape(2, count, 1), strict=False):
        raw[:, start : start + 2] = values.view(np.uint8)
    if kind is Kind.IQ1_M:
        spread_half(raw, given[:count])
    if kind is Kind.MXFP4:
        raw[:, 0] = generator.integers(0, LARGEST_POWER, count, endpoint=True)
    return raw.reshape(rows, -1)


LARGEST_POWER = 252
"""Larger ones overflow with the largest code, and 255 is NaN in the standard, where ggml takes it for a number."""


def spread_half(raw: Bytes, halves: Bytes) -> None:
    """IQ1_M keeps a float16 in the upper four bits of each of its last four 16-bit numbers."""
    for index, shift in enumerate((0, 4, 8, 12)):
        quarter = (halves.view("<u2") >> shift & 0xF).astype(np.uint8) << 4
        raw[:, 49 + 2 * index] = raw[:, 49 + 2 * index] & 0x0F | quarter


def width_of(kind: gguf.GGMLQuantizationType, blocks: int) -> int:
    return int(GGML_QUANT_SIZES[kind][0]) * blocks


def encoded(kind: gguf.GGMLQuantizationType, raw: Bytes) -> Encoding:
    width = raw.shape[1] // int(GGML_QUANT_SIZES[kind][1]) * int(GGML_QUANT_SIZES[kind][0])
    encoding = encoding_of(kind, width, lambda start, stop: raw[start:stop])
    assert encoding is not None
    return encoding


def bits(values: Bytes) -> Bytes:
    assert values.dtype == np.float32
    return np.ascontiguousarray(values).view(np.uint32)


@pytest.mark.parametrize("blocks", [1, 3, 4])
@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.name)
def test_random_blocks_decode_to_what_the_gguf_library_gives(kind: gguf.GGMLQuantizationType, blocks: int) -> None:
    raw = random_rows(kind, 33, blocks)
    expected = dequantize(raw, kind)
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(bits(decode(encoded(kind, raw), width_of(kind, blocks), 0, 33)), bits(expected))


ANY_HALF = np.arange(1 << 16, dtype=np.uint16)
FINITE = ANY_HALF[np.isfinite(ANY_HALF.view(np.float16))]


@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.name)
def test_scales_of_any_size_even_zero_and_subnormal_stay_exact(kind: gguf.GGMLQuantizationType) -> None:
    raw = random_rows(kind, 64, 8, halves=np.random.default_rng(1).choice(FINITE, 64 * 8 * 2).view("<f2"))
    expected = dequantize(raw, kind)
    assert np.isfinite(expected).any()
    np.testing.assert_array_equal(bits(decode(encoded(kind, raw), expected.shape[1], 0, 64)), bits(expected))


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q5_1, Kind.Q2_K, Kind.Q4_K, Kind.Q5_K], ids=lambda kind: kind.name)
def test_a_scale_of_zero_leaves_the_minimum(kind: gguf.GGMLQuantizationType) -> None:
    raw = random_rows(kind, 5, 3)
    blocks = raw.reshape(15, -1)
    scale, _ = HALVES[kind]
    blocks[:, scale : scale + 2] = 0
    expected = dequantize(raw, kind)
    assert np.count_nonzero(expected) > expected.size / 2
    np.testing.assert_array_equal(bits(decode(encoded(kind, raw), expected.shape[1], 0, 5)), bits(expected))


SCALE_BYTES = {
    **dict.fromkeys((Kind.Q4_0, Kind.Q5_0, Kind.Q8_0, Kind.IQ4_NL, Kind.TQ1_0, Kind.TQ2_0), 2),
    **dict.fromkeys((Kind.Q4_1, Kind.Q5_1), 4),
    **dict.fromkeys((Kind.IQ4_XS, Kind.IQ1_S, Kind.IQ2_XXS, Kind.IQ3_XXS, Kind.IQ3_S), 2 + 8),
    **dict.fromkeys((Kind.Q3_K, Kind.Q6_K, Kind.IQ1_M, Kind.IQ2_XS, Kind.IQ2_S), 2 + 16),
    **dict.fromkeys((Kind.Q4_K, Kind.Q5_K), 4 + 16),
    Kind.Q2_K: 4 + 32,
    Kind.MXFP4: 1,
}
"""Of a block: every number in the type that the file has, those of fewer bits in a byte."""


@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.name)
def test_scales_stay_as_small_as_the_file_has_them(kind: gguf.GGMLQuantizationType) -> None:
    rows, blocks = 8, 3
    raw = random_rows(kind, rows, blocks)
    encoding = encoded(kind, raw)
    parts = (*encoding.scales, *getattr(encoding, "offsets", ()))
    for part in parts:
        values = part.read(0, rows)
        assert (values.dtype, values.shape) == (part.dtype, (rows, part.columns))
    codes = encoding.codes(0, rows)
    assert (codes.dtype, codes.shape) == (np.uint8, (rows, width_of(kind, blocks) * encoding.bits // 8))
    assert sum(part.read(0, rows).nbytes for part in parts) == SCALE_BYTES[kind] * rows * blocks


@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.name)
def test_any_run_of_rows_is_the_slice_of_the_whole(kind: gguf.GGMLQuantizationType) -> None:
    raw = random_rows(kind, 12, 2)
    encoding = encoded(kind, raw)
    readers = [encoding.codes, *(part.read for part in (*encoding.scales, *getattr(encoding, "offsets", ())))]
    for read in readers:
        for start, stop in [(0, 1), (5, 9), (4, 4), (11, 12)]:
            np.testing.assert_array_equal(read(start, stop), read(0, 12)[start:stop])


@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.name)
def test_blocks_shuffled_a_few_at_once_are_the_blocks_shuffled_together(
    kind: gguf.GGMLQuantizationType, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = random_rows(kind, 11, 3)
    expected = dequantize(raw, kind)
    for blocks in (1, 2, 7, 32, 33, 34):
        monkeypatch.setattr(encodings, "AT_ONCE", blocks * raw.shape[1] // 3)
        np.testing.assert_array_equal(bits(decode(encoded(kind, raw), expected.shape[1], 0, 11)), bits(expected))


CODEBOOKS = [kind for kind, layout in LAYOUTS.items() if layout.table]


@pytest.mark.parametrize("kind", CODEBOOKS, ids=lambda kind: kind.name)
def test_every_table_has_an_exact_image_of_integers(kind: gguf.GGMLQuantizationType) -> None:
    raw = random_rows(kind, 9, 3)
    encoding = encoded(kind, raw)
    assert isinstance(encoding, Codebook)
    image = integer_image(encoding)
    assert image is not None
    expected = dequantize(raw, kind)
    np.testing.assert_array_equal(bits(decode(image, expected.shape[1], 0, 9)), bits(expected))


def test_types_without_a_zero_point_of_their_own_need_none() -> None:
    """Operators take 2^(bits-1) where none is given."""
    symmetric = [Kind.Q4_0, Kind.Q5_0, Kind.Q8_0, Kind.Q3_K, Kind.Q6_K]
    for kind in symmetric:
        encoding = encoded(kind, random_rows(kind, 1, 1))
        assert isinstance(encoding, Affine)
        assert encoding.zero == encoding.middle, kind


def test_only_types_without_integer_codes_have_no_encoding() -> None:
    kinds = {tensor_type for tensor_type in quants._type_traits if tensor_type is not Kind.BF16}
    assert kinds - LAYOUTS.keys() == {Kind.NVFP4}


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q4_1], ids=lambda kind: kind.name)
@pytest.mark.parametrize("architecture", ["llama", "gptneox"])
def test_rows_that_the_converter_reordered_are_put_back_in_the_encoding_too(
    architecture: str, kind: gguf.GGMLQuantizationType, tmp_path: Path
) -> None:
    case = BY_NAME[architecture]
    model = case.write(tmp_path / "model.gguf", kind=kind)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    encoded_tensors = [tensor for tensor in checkpoint.tensors.values() if tensor.encoding is not None]
    assert len(encoded_tensors) >= 10
    assert checkpoint.quantization == "GGUF"
    originals = dict(model.named_parameters())
    for tensor in encoded_tensors:
        assert tensor.encoding is not None
        for start, stop in [(0, tensor.shape[0]), (3, 17)]:
            values = decode(tensor.encoding, tensor.shape[1], start, stop)
            np.testing.assert_array_equal(bits(values), bits(tensor.rows(start, stop)))
            # The original's rows, each quantized by itself, in the original's order.
            rows = originals[tensor.name].detach().numpy()[start:stop]
            np.testing.assert_array_equal(values, dequantize(quantize(rows, kind), kind))


def test_transposed_matrices_stay_floats_and_the_user_is_told(tmp_path: Path) -> None:
    BY_NAME["gpt2"].write(tmp_path / "model.gguf", kind=Kind.Q8_0)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    dense = [tensor for tensor in checkpoint.tensors.values() if tensor.stored_as == "Q8_0" and not tensor.encoding]
    assert all(".c_" in tensor.name for tensor in dense)
    assert checkpoint.notices == (
        f"{len(dense)} matrices stored as Q8_0 are read as float32: "
        "no integer codes give the values that the model needs.",
    )
