"""Our reading of ONNX Runtime's quantized form is its own: both kernels give exactly the weights we dequantize."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from truecast.weights.quantize import BLOCK_SIZES, blocks_per_row, dequantize_rows, quantize_rows

FEW = settings(max_examples=40, deadline=None)
BITS = st.sampled_from([4, 8])
BLOCKS = st.sampled_from(BLOCK_SIZES)
NUMBERS = st.floats(-100, 100, width=32, allow_subnormal=False)
ROUNDING = 1e-6
"""Relative: products and sums of float32."""


def weights(widths: st.SearchStrategy[int] = st.integers(1, 300)) -> st.SearchStrategy[np.ndarray]:  # noqa: B008
    """Float32 matrices of up to 5 rows; a row may be zeros, hold one number only, or have an outlier."""
    shapes = st.tuples(st.integers(1, 5), widths)
    return shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=NUMBERS, fill=st.just(0.25)))


def run(kind: str, attributes: dict[str, Any], inputs: dict[str, np.ndarray]) -> np.ndarray:
    """One com.microsoft operator in ONNX Runtime."""
    values = [
        ir.Value(name=name, shape=ir.Shape(x.shape), type=ir.TensorType(ir.DataType.from_numpy(x.dtype)))
        for name, x in inputs.items()
    ]
    output = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node(kind, values, attributes, domain="com.microsoft", outputs=[output])
    graph = ir.Graph(values, [output], nodes=[node], opset_imports={"": 21, "com.microsoft": 1}, name="one")
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, inputs)[0]
    return result


@FEW
@given(weights(), BITS, BLOCKS)
def test_matmulnbits_multiplies_by_the_dequantized_weights(rows: np.ndarray, bits: int, block: int) -> None:
    codes, scales = quantize_rows(rows, bits, block)
    count, width = rows.shape
    attributes = {"K": width, "N": count, "bits": bits, "block_size": block, "accuracy_level": 0}
    got = run("MatMulNBits", attributes, {"x": np.eye(width, dtype=np.float32), "codes": codes, "scales": scales})
    np.testing.assert_allclose(got.T, dequantize_rows(codes, scales, bits, width), rtol=ROUNDING, atol=1e-30)


@FEW
@given(st.data(), BITS, BLOCKS)
def test_gatherblockquantized_looks_up_the_dequantized_rows(data: st.DataObject, bits: int, block: int) -> None:
    rows = data.draw(weights(st.sampled_from([block, 2 * block])))
    codes, scales = quantize_rows(rows, bits, block)
    count, width = rows.shape
    ids = np.arange(count)[::-1].copy()
    attributes = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    table = codes.reshape(count, -1)
    got = run("GatherBlockQuantized", attributes, {"table": table, "ids": ids, "scales": scales})
    np.testing.assert_allclose(got, dequantize_rows(codes, scales, bits, width)[ids], rtol=ROUNDING, atol=1e-30)


@FEW
@given(weights(), BITS, BLOCKS)
def test_a_weight_is_off_by_half_a_step_and_at_the_far_end_by_one(rows: np.ndarray, bits: int, block: int) -> None:
    codes, scales = quantize_rows(rows, bits, block)
    step = np.abs(np.repeat(scales, block, 1)[:, : rows.shape[1]])
    error = np.abs(dequantize_rows(codes, scales, bits, rows.shape[1]) - rows)
    largest = (1 << (bits - 1)) - 1
    inside = np.abs(rows) <= largest * step
    assert (error[inside] <= step[inside] * (0.5 + 1e-4)).all()
    assert (error <= step * (1 + 1e-4)).all()


@FEW
@given(weights(), BITS, BLOCKS)
def test_a_scale_is_the_largest_weight_of_its_block_over_the_largest_code(
    rows: np.ndarray, bits: int, block: int
) -> None:
    _, scales = quantize_rows(rows, bits, block)
    count, width = rows.shape
    padded = np.zeros((count, scales.shape[1] * block), np.float32)
    padded[:, :width] = np.abs(rows)
    largest = padded.reshape(count, -1, block).max(-1)
    np.testing.assert_allclose(np.abs(scales), largest / (1 << (bits - 1)), rtol=1e-5, atol=1e-30)


@FEW
@given(weights(), BITS, BLOCKS, st.data())
def test_rows_do_not_depend_on_those_quantized_with_them(
    rows: np.ndarray, bits: int, block: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start + 1, len(rows)))
    for part, everything in zip(
        quantize_rows(rows[start:stop], bits, block), quantize_rows(rows, bits, block), strict=True
    ):
        assert np.array_equal(part, everything[start:stop])


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zeros(bits: int) -> None:
    codes, scales = quantize_rows(np.zeros((2, 40), np.float32), bits, 32)
    assert not dequantize_rows(codes, scales, bits, 40).any()


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_take_their_bits_and_nothing_more(bits: int) -> None:
    codes, scales = quantize_rows(np.ones((3, 70), np.float32), bits, 32)
    assert (codes.shape, codes.dtype) == ((3, 3, 32 * bits // 8), np.uint8)
    assert (scales.shape, scales.dtype) == ((3, 3), np.float32)


def test_the_lower_half_of_a_byte_is_the_first_weight() -> None:
    codes, scales = quantize_rows(np.array([[-8, 7, 0, 1] + 12 * [0]], np.float32), 4, 16)
    assert scales[0, 0] == 1
    assert codes[0, 0, :3].tolist() == [0xF0, 0x98, 0x88]


@pytest.mark.parametrize(("width", "blocks"), [(1, 1), (32, 1), (33, 2), (64, 2)])
def test_the_last_block_may_be_padded(width: int, blocks: int) -> None:
    assert blocks_per_row(width, 32) == blocks
