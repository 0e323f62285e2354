"""Encodings stand for what their formula says, written out here column by column."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.encodings import E2M1, FLOAT8_VALUES, FP4, NF4, SCALES, Drawn, affines, factor, make_affine, make_codebook
from truecast.checkpoint.encoding import Affine, Codebook, decode, groups_of, integer_image, product
from truecast.checkpoint.gguf.encodings import IQ4_VALUES

INTEGERS = np.array(IQ4_VALUES, np.float32)


def decoded(drawn: Drawn) -> np.ndarray:
    return decode(drawn.encoding, drawn.width, 0, drawn.rows)


@settings(max_examples=100, deadline=None)
@given(affines())
def test_an_affine_encoding_is_its_formula(drawn: Drawn) -> None:
    np.testing.assert_array_equal(decoded(drawn), drawn.values)


@settings(max_examples=50, deadline=None)
@given(affines(), st.integers(0, 33), st.integers(0, 33))
def test_rows_are_the_slice_of_the_whole(drawn: Drawn, first: int, second: int) -> None:
    start, stop = sorted((min(first, drawn.rows), min(second, drawn.rows)))
    np.testing.assert_array_equal(decode(drawn.encoding, drawn.width, start, stop), drawn.values[start:stop])


@pytest.mark.parametrize("table", [NF4, FP4, E2M1, INTEGERS, FLOAT8_VALUES], ids=["nf4", "fp4", "e2m1", "iq4", "f8"])
@pytest.mark.parametrize(("group", "width"), [(16, 48), (32, 70), (64, 64), (-1, 33)])
@pytest.mark.parametrize("scales", ["float32", "float8 · float32 per row"])
def test_a_codebook_encoding_is_its_formula(table: np.ndarray, group: int, width: int, scales: str) -> None:
    drawn = make_codebook(0, table, group, (5, width), scales)
    np.testing.assert_array_equal(decoded(drawn), drawn.values)


def test_a_worked_example() -> None:
    """Two groups of two and a shorter third; the columns are stored in the order 4, 0, 1, 2, 3."""
    encoding = Affine(
        bits=4,
        group=2,
        codes=lambda start, stop: np.array([[0x21, 0x43, 0x05]], np.uint8)[start:stop],
        scales=(factor(np.array([[1.0, 10.0, 100.0]], np.float32)),),
        zero=lambda start, stop: np.array([[0, 1, 2]], np.uint8)[start:stop],
        offsets=(factor(np.array([[0.5]], np.float16)),),
        order=np.array([4, 0, 1, 2, 3]),
    )
    assert decode(encoding, 5, 0, 1).tolist() == [[2.5, 20.5, 30.5, 300.5, 1.5]]


def test_factors_of_any_number_of_columns_serve_neighbouring_groups_alike() -> None:
    one, per_row, per_pair = np.array([[1, 2, 3, 4]], np.uint8), np.array([[10]], np.int8), np.array([[1, -1]], np.int8)
    factors = [factor(array) for array in (one, per_row, per_pair)]
    assert product(factors, 4, 0, 1).tolist() == [[10, 20, -30, -40]]
    assert product([], 4, 0, 2).tolist() == [[1] * 4] * 2


@pytest.mark.parametrize(("width", "group", "groups"), [(64, 32, 2), (65, 32, 3), (31, 32, 1), (1, 1, 1)])
def test_the_last_group_may_be_shorter(width: int, group: int, groups: int) -> None:
    assert groups_of(width, group) == groups


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_without_a_number_the_zero_point_is_the_middle(bits: int) -> None:
    drawn = make_affine(0, bits, 16, (2, 32))
    assert drawn.affine.middle == {2: 2, 4: 8, 8: 128}[bits] == drawn.affine.zero


def test_a_scale_of_zero_leaves_the_offset() -> None:
    drawn = make_affine(0, 4, 16, (2, 32), zero=0, offsets="float16")
    nothing = replace(drawn.affine, scales=(factor(np.zeros((2, 2), np.float16)),))
    offsets = np.repeat(product(drawn.affine.offsets, 2, 0, 2), 16, axis=1)
    np.testing.assert_array_equal(decode(nothing, 32, 0, 2), offsets)


# Integer images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [E2M1, INTEGERS, E2M1 / 4], ids=["halves", "integers", "eighths"])
@pytest.mark.parametrize("scales", sorted(SCALES))
@pytest.mark.parametrize("width", [64, 57])
def test_a_table_of_small_integers_times_a_power_of_two_has_an_exact_image(
    table: np.ndarray, scales: str, width: int
) -> None:
    drawn = make_codebook(1, table, 32, (7, width), scales)
    assert isinstance(drawn.encoding, Codebook)
    image = integer_image(drawn.encoding)
    assert image is not None
    assert (image.bits, image.zero, image.group) == (8, 128, 32)
    np.testing.assert_array_equal(decode(image, width, 0, 7), drawn.values)


def test_an_image_keeps_scales_as_stored_where_the_table_is_integers() -> None:
    drawn = make_codebook(1, INTEGERS, 32, (7, 64), "float16")
    assert isinstance(drawn.encoding, Codebook)
    image = integer_image(drawn.encoding)
    assert image is not None
    assert image.scales == drawn.encoding.scales


@pytest.mark.parametrize(
    "table",
    [NF4, FP4, FLOAT8_VALUES, np.arange(0, 256, 16, np.uint8).astype(np.float32), E2M1 / 8],
    ids=["nf4", "fp4", "float8", "too large", "sixteenths"],
)
def test_other_tables_have_no_image(table: np.ndarray) -> None:
    drawn = make_codebook(1, table, 32, (7, 64))
    assert isinstance(drawn.encoding, Codebook)
    assert integer_image(drawn.encoding) is None


def test_the_largest_distance_from_the_middle_is_127() -> None:
    for largest, fits in ((127, True), (128, False)):
        table = np.arange(-8, 8).astype(np.float32)
        table[0] = -largest
        drawn = make_codebook(1, table, 32, (1, 64))
        assert isinstance(drawn.encoding, Codebook)
        assert (integer_image(drawn.encoding) is not None) == fits
