"""What a weight becomes, before any graph: the checkpoint's own bytes, in operands that the operators take."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.encodings import (
    FLOAT8_VALUES,
    FP4,
    NF4,
    SCALES,
    WHOLE_ROW,
    Drawn,
    affines,
    factor,
    make_affine,
    make_codebook,
    packed,
    reader,
)
from tests.weights.stored import encoded, random, stored, whole
from truecast.errors import InputError
from truecast.weights.forms import Blocks, Bnb4, Floats, alike, form_of, stack_blocks
from truecast.weights.precision import Precision

OWN = Precision("as-is", ir.DataType.FLOAT, own=True)
INT4 = Precision("int4", ir.DataType.FLOAT, 4, 32)


def form(drawn: Drawn, name: str = "w") -> Blocks | Bnb4 | Floats:
    return form_of(name, encoded(name, drawn.encoding, (drawn.rows, drawn.width)), OWN)


def blocks(drawn: Drawn, name: str = "w") -> Blocks:
    made = form(drawn, name)
    assert isinstance(made, Blocks)
    return made


@settings(max_examples=60, deadline=None)
@given(affines())
def test_codes_and_scales_are_the_checkpoints_own_bytes(drawn: Drawn) -> None:
    made = form(drawn)
    if not isinstance(made, Blocks):
        assert drawn.affine.group % 16 or (drawn.affine.offsets and drawn.width % drawn.affine.group)
        return
    affine, arrays = drawn.affine, dict(zip(made.binding.operands, whole(made.binding), strict=True))
    stored_codes = affine.codes(0, drawn.rows)
    codes = arrays[made.codes].reshape(drawn.rows, -1)
    assert codes[:, : stored_codes.shape[1]].tobytes() == stored_codes.tobytes()
    assert not codes[:, stored_codes.shape[1] :].any()
    for operands, factors in ((made.scales, affine.scales), (made.offsets, affine.offsets)):
        for operand, one in zip(operands, factors, strict=True):
            assert arrays[operand].dtype == one.dtype
            assert arrays[operand].tobytes() == one.read(0, drawn.rows).tobytes()
    assert made.binding.own


@settings(max_examples=30, deadline=None)
@given(affines(), st.integers(0, 33), st.integers(0, 33))
def test_any_run_of_rows_is_the_slice_of_the_whole(drawn: Drawn, first: int, second: int) -> None:
    binding = form(drawn).binding
    start, stop = sorted((min(first, drawn.rows), min(second, drawn.rows)))
    if start == stop:
        return
    for operand, part, all_rows in zip(
        binding.operands, binding.produce(start, stop), binding.produce(0, drawn.rows), strict=True
    ):
        assert part.tobytes() == all_rows[start:stop].tobytes()
        assert all_rows.nbytes == operand.nbytes


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("groups", [1, 3, 4])
def test_zero_points_are_packed_in_rows_of_their_own(bits: int, groups: int) -> None:
    drawn = make_affine(0, bits, 64, (5, 64 * groups), zero="groups")
    made = blocks(drawn)
    zeros = whole(made.binding)[made.binding.operands.index(made.zeros)]  # type: ignore[arg-type]
    assert not isinstance(drawn.affine.zero, int)
    np.testing.assert_array_equal(zeros, packed(drawn.affine.zero(0, 5), bits))


def test_zero_points_are_repeated_where_a_group_has_several_blocks() -> None:
    drawn = make_affine(0, 8, 512, (3, 1024), zero="groups")
    zeros = whole(blocks(drawn).binding)[2]
    assert not isinstance(drawn.affine.zero, int)
    np.testing.assert_array_equal(zeros, drawn.affine.zero(0, 3)[:, [0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("zero", "offsets", "kept", "shift"), [(8, "", False, 0), (3, "", True, 0), (0, "float16", False, 8)]
)
def test_the_usual_zero_point_is_not_stored(zero: int, offsets: str, kept: bool, shift: int) -> None:
    made = blocks(make_affine(0, 4, 32, (3, 64), zero=zero, offsets=offsets))
    assert (made.zeros is not None, made.shift) == (kept, shift)


@pytest.mark.parametrize("scales", sorted(SCALES))
def test_factors_keep_their_dtype(scales: str) -> None:
    drawn = make_affine(0, 4, 32, (3, 96), scales=scales)
    assert [operand.dtype.numpy() for operand in blocks(drawn).scales] == [one.dtype for one in drawn.affine.scales]


def test_a_factor_that_the_opset_cannot_cast_becomes_float32() -> None:
    powers = np.array([[120, 127, 130]], np.uint8).view(ml_dtypes.float8_e8m0fnu)
    drawn = make_affine(0, 4, 32, (1, 96))
    made = form_of("w", encoded("w", replace(drawn.affine, scales=(factor(powers),)), (1, 96)), OWN)
    assert isinstance(made, Blocks)
    assert made.scales[0].dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(whole(made.binding)[1], [[2.0**-7, 1, 8]])


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["scales", "offsets"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scales_that_are_no_numbers_are_refused(part: str, value: float) -> None:
    drawn = make_affine(0, 4, 32, (3, 64), offsets="float16")
    bad = np.ones((3, 2), np.float16)
    bad[2, 1] = value
    made = form_of("w", encoded("w", replace(drawn.affine, **{part: (factor(bad),)}), (3, 64)), OWN)
    assert made.binding.produce(0, 2)
    with pytest.raises(InputError, match=r"'w' in .* has scales that are NaN or infinity; the checkpoint is damaged"):
        made.binding.produce(2, 3)


def test_float8_bytes_that_are_no_numbers_are_refused() -> None:
    drawn = make_codebook(0, FLOAT8_VALUES, WHOLE_ROW, (3, 64))
    codes = drawn.codes.copy()
    codes[1, 7] = 0x7F
    tensor = encoded("w", replace(drawn.encoding, codes=reader(codes)), (3, 64))
    with pytest.raises(InputError, match=r"'w' in .* has values that are NaN or infinity"):
        form_of("w", tensor, OWN).binding.produce(0, 3)


def test_bitsandbytes_scales_that_are_no_numbers_are_refused() -> None:
    drawn = make_codebook(0, NF4, 64, (3, 64))
    tensor = encoded("w", replace(drawn.encoding, scales=(factor(np.full((3, 1), np.inf, np.float32)),)), (3, 64))
    with pytest.raises(InputError, match=r"'w' in .* has scales that are NaN or infinity"):
        form_of("w", tensor, OWN).binding.produce(0, 3)


def test_a_zero_point_beyond_its_bits_does_not_leak_into_its_neighbour() -> None:
    drawn = make_affine(0, 4, 32, (3, 64))
    zeros = np.array([[1, 2], [3, 4], [16, 5]], np.uint8)
    made = form_of("w", encoded("w", replace(drawn.affine, zero=reader(zeros)), (3, 64)), OWN)
    with pytest.raises(InputError, match=r"'w' in .* has zero points that are no codes of 4 bits"):
        made.binding.produce(0, 3)


def test_a_quantized_weight_of_a_transposed_module_is_refused() -> None:
    tensor = encoded("w", make_affine(0, 4, 32, (3, 64)).encoding, (3, 64))
    with pytest.raises(InputError, match=r"as \[in, out\]"):
        form_of("w", tensor, OWN, transposed=True)


# What fits what -------------------------------------------------------------------------------------------------------


def test_codebooks_find_their_operators() -> None:
    for table, kind in ((FP4, 0), (NF4, 1)):
        made = form(make_codebook(0, table, 64, (3, 128)))
        assert isinstance(made, Bnb4)
        assert (made.table, made.block, made.binding.own) == (kind, 64, True)
    nearly = NF4.copy()
    nearly[3] = np.nextafter(nearly[3], 1, dtype=np.float32)
    assert isinstance(form(make_codebook(0, nearly, 64, (3, 128))), Floats)


def test_bitsandbytes_want_the_first_code_in_the_high_bits() -> None:
    drawn = make_codebook(0, NF4, 64, (2, 64))
    codes = whole(form(drawn).binding)[0]
    np.testing.assert_array_equal(codes, (drawn.codes[:, ::2] << 4 | drawn.codes[:, 1::2]).reshape(-1))


def test_another_precision_quantizes_anew() -> None:
    drawn = make_affine(0, 8, 32, (3, 64))
    made = form_of("w", encoded("w", drawn.encoding, (3, 64)), INT4)
    assert isinstance(made, Blocks)
    assert (made.bits, made.binding.own) == (4, False)


def test_floats_are_no_codes_of_their_own() -> None:
    made = form_of("w", stored("w", random(3, 64).astype(np.float16)), OWN)
    assert isinstance(made, Floats)
    assert (made.table.dtype, made.binding.own) == (ir.DataType.FLOAT16, False)


def test_a_stack_has_the_rows_of_its_parts_one_below_the_other() -> None:
    parts = [
        make_affine(seed, 4, 32, (rows, 96), zero="groups", scales="float16 · six bits")
        for seed, rows in ((1, 3), (2, 5))
    ]
    forms = [blocks(part, f"w{index}") for index, part in enumerate(parts)]
    assert alike(forms)
    stack = stack_blocks("both", forms)
    assert (stack.rows, stack.binding.sources, stack.binding.own) == (8, ("w0", "w1"), True)
    assert {operand.name.partition(".")[0] for operand in stack.binding.operands} == {"both"}
    for got, upper, lower in zip(whole(stack.binding), *(whole(one.binding) for one in forms), strict=True):
        assert got.tobytes() == upper.tobytes() + lower.tobytes()


def test_other_forms_are_never_alike() -> None:
    assert not alike([form(make_codebook(0, NF4, 64, (3, 64)))] * 2)
    assert not alike([form(make_affine(0, 4, 32, (3, 64))), form(make_affine(0, 4, 40, (3, 40)))])
