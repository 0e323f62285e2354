"""Experts as operands: any rows of their matrices in the operator's order, blocks that MoE and QMoE can read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from tests.weights.stored import encoded, random, stored, whole
from truecast.checkpoint.bits import pack
from truecast.checkpoint.encoding import Affine, Factor
from truecast.checkpoint.model import StoredTensor
from truecast.errors import InputError
from truecast.proof.operators import dequantize
from truecast.weights.experts import Stack, as_matrix, forms_of
from truecast.weights.forms import Blocks, Floats
from truecast.weights.names import DYNAMIC
from truecast.weights.precision import Precision

EXPERTS, OUT, WIDTH = 3, 6, 64
FLOAT = Precision("fp32", ir.DataType.FLOAT)
INT4 = Precision("int4", ir.DataType.FLOAT, 4)
OWN = Precision("as-is", ir.DataType.FLOAT, own=True)


def turns(array: np.ndarray) -> np.ndarray:
    """Halves of rows, one from each in turn."""
    return np.stack(np.split(array, 2, axis=1), 2).reshape(array.shape)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("halves", [False, True])
def test_any_run_of_rows_is_that_of_the_whole(transposed: bool, halves: bool) -> None:
    array = random(EXPERTS, OUT, WIDTH)
    tensor = stored("w", array.swapaxes(1, 2) if transposed else array)
    matrix = as_matrix(tensor, transposed, halves)
    want = (turns(array) if halves else array).reshape(-1, WIDTH)
    assert matrix.shape == want.shape
    for start in range(len(want)):
        for stop in range(start, len(want) + 1):
            if stop > start:
                np.testing.assert_array_equal(matrix.rows(start, stop), want[start:stop])


def coded(bits: int = 4, group: int = 16, order: np.ndarray | None = None, rows: int = OUT) -> StoredTensor:
    """A matrix of codes with zero points, [EXPERTS · rows, WIDTH]."""
    numbers = np.random.default_rng(bits)
    count = EXPERTS * rows
    codes = numbers.integers(0, 256, (count, WIDTH * bits // 8), np.uint8)
    scales = numbers.random((count, WIDTH // group)).astype(np.float16)
    zeros = numbers.integers(0, 1 << bits, (count, WIDTH // group), np.uint8)
    factor = Factor(scales.dtype, WIDTH // group, lambda start, stop: scales[start:stop])
    encoding = Affine(bits, group, lambda a, b: codes[a:b], (factor,), lambda a, b: zeros[a:b], (), order)
    return encoded("w", encoding, (count, WIDTH))


def stacked(matrix: StoredTensor, halves: bool = False) -> Stack:
    rows = matrix.shape[0] // EXPERTS
    tensor = replace(matrix, shape=(EXPERTS, rows, WIDTH), encoding=None, matrices=matrix)
    return Stack(matrix.name, as_matrix(tensor, False, halves), EXPERTS)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("halves", [False, True])
def test_own_codes_stay_and_mean_the_same(bits: int, halves: bool) -> None:
    matrix = coded(bits)
    first, second = stacked(matrix, halves), stacked(coded(bits, group=32))
    forms = forms_of([first, second], OWN)
    assert all(isinstance(form, Blocks) and form.block == 16 and form.binding.own for form in forms)
    for form, stack, want in zip(forms, (first, second), (matrix, coded(bits, group=32)), strict=True):
        codes, scales, zeros = whole(form.binding)
        assert codes.shape == (EXPERTS, OUT, WIDTH * bits // 8) and scales.shape == (EXPERTS, OUT, WIDTH // 16)
        flat = (EXPERTS * OUT, -1)
        values = dequantize(codes.reshape(flat), scales.reshape(flat), bits, 16, WIDTH, zeros.reshape(flat))
        array = want.read().reshape(EXPERTS, OUT, WIDTH)
        wanted = turns(array) if halves and stack is first else array
        np.testing.assert_array_equal(values.reshape(array.shape), wanted)


@pytest.mark.parametrize(
    "other",
    [coded(8), coded(2), coded(order=np.arange(WIDTH)[::-1].copy()), stored("w", random(EXPERTS * OUT, WIDTH))],
    ids=["8 bits", "2 bits", "ordered columns", "floats"],
)
def test_codes_that_the_operator_cannot_have_together_become_floats(other: StoredTensor) -> None:
    stacks = [stacked(coded()), stacked(other)]
    forms = forms_of(stacks, OWN)
    for form, stack in zip(forms, stacks, strict=True):
        assert isinstance(form, Floats)
        (table,) = whole(form.binding)
        np.testing.assert_array_equal(table.reshape(-1, WIDTH), stack.matrix.read())


@pytest.mark.parametrize(("widths", "block"), [((64, 64), 32), ((64, 48), 16), ((64, 40), None)])
def test_blocks_made_here_divide_the_rows_of_both(widths: tuple[int, int], block: int | None) -> None:
    stacks = [Stack("w", stored("w", random(EXPERTS * OUT, width)), EXPERTS) for width in widths]
    forms = forms_of(stacks, INT4)
    assert {form.block if isinstance(form, Blocks) else None for form in forms} == {block}


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        (replace(INT4, method="hqq"), "hqq adds an offset"),
        (Precision(DYNAMIC, ir.DataType.FLOAT, 8, channels=True), "choose int8 or int4"),
        (Precision("fp16", ir.DataType.FLOAT16), "scores that choose experts"),
    ],
)
def test_what_no_operator_does_is_refused(precision: Precision, said: str) -> None:
    with pytest.raises(InputError, match=said):
        forms_of([Stack("w", stored("w", random(EXPERTS * OUT, WIDTH)), EXPERTS)], precision)


def test_zero_points_are_repeated_for_smaller_blocks() -> None:
    forms = forms_of([stacked(coded(group=32)), stacked(coded(group=16))], OWN)
    _, scales, zeros = whole(forms[0].binding)
    assert zeros.shape == (EXPERTS, OUT, 2) and scales.shape[2] == 4
    points = np.stack((zeros & 15, zeros >> 4), -1).reshape(EXPERTS, OUT, 4)
    np.testing.assert_array_equal(points[..., 0::2], points[..., 1::2])
    np.testing.assert_array_equal(pack(points.reshape(-1, 4), 4), zeros.reshape(-1, 2))
