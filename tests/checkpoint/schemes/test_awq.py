"""AWQ: true checkpoints and GPTQModel's packings are read bit for bit in every layout; contradictions are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoint.schemes.stored import DATA, Array, assert_rows_agree, from_encoding, opened, save
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.bits import unpack
from truecast.checkpoint.divisions import activation_scales
from truecast.checkpoint.encoding import Affine
from truecast.checkpoint.model import StoredTensor
from truecast.checkpoint.schemes.awq import SCHEME
from truecast.errors import InputError


def test_a_symmetric_checkpoint_has_one_zero_point() -> None:
    for tensor in open_checkpoint(DATA / "auto-round-awq-sym").tensors.values():
        if tensor.encoding:
            assert isinstance(tensor.encoding, Affine)
            assert tensor.encoding.zero == 8


def nibbles(codes: list[int], order: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)) -> int:
    """A 32-bit word, signed: its nibble i, from the lowest, is code order[i]."""
    word = sum(codes[column] << (4 * place) for place, column in enumerate(order))
    return word - (1 << 32) if word >> 31 else word


def module(folder: Path, stored: Mapping[str, Array | None], **stated: Any) -> StoredTensor:
    """The weight of the module `p` in a checkpoint with these tensors and this quantization_config."""
    return opened(save(folder, stored, {"quant_method": "awq", **stated}), SCHEME).tensors["p.weight"]


def numbers(rows: int, width: int, group: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Codes [rows, width], zero points and scales [rows, groups]."""
    generator = np.random.default_rng(seed)
    groups = -(-width // group)
    scales = generator.uniform(0.01, 0.1, (rows, groups)).astype(np.float16)
    return generator.integers(0, 16, (rows, width)), generator.integers(0, 16, (rows, groups)), scales


def product(codes: Array, zeros: Array, scales: Array, group: int) -> Array:
    """The weight, one element at a time."""
    rows, width = codes.shape
    values = [
        [np.float32(codes[n, k] - zeros[n, k // group]) * np.float32(scales[n, k // group]) for k in range(width)]
        for n in range(rows)
    ]
    return np.array(values, np.float32)


INTERLEAVED = (0, 2, 4, 6, 1, 3, 5, 7)


def gemm(rows: int, width: int, group: int, seed: int = 0) -> tuple[dict[str, Array], Array]:
    codes, zeros, scales = numbers(rows, width, group, seed)

    def words(matrix: Array) -> Array:
        lines = [[nibbles(row[c : c + 8], INTERLEAVED) for c in range(0, rows, 8)] for row in matrix.T.tolist()]
        return np.array(lines, np.int32)

    stored = {"p.qweight": words(codes), "p.qzeros": words(zeros), "p.scales": scales.T}
    return stored, product(codes, zeros, scales, group)


def gemv(rows: int, width: int, group: int, padded: int, seed: int = 0) -> tuple[dict[str, Array], Array]:
    codes, zeros, scales = numbers(rows, width, group, seed)
    more = ((0, 0), (0, padded - zeros.shape[1]))

    def words(matrix: Array) -> Array:
        return np.array([[nibbles(row[c : c + 8]) for c in range(0, len(row), 8)] for row in matrix.tolist()], np.int32)

    stored = {"p.qweight": words(codes), "p.qzeros": words(np.pad(zeros, more)), "p.scales": np.pad(scales, more)}
    return stored, product(codes, zeros, scales, group)


PROPERTY = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@PROPERTY
@given(words=st.integers(1, 9), width=st.integers(2, 70), group=st.sampled_from([8, 16, 32, 64]))
def test_gemm_of_any_shape_is_decoded_element_by_element(words: int, width: int, group: int, tmp_path: Path) -> None:
    group = min(group, width)
    stored, weight = gemm(8 * words, width, group, seed=width)
    tensor = module(tmp_path, stored, group_size=group)
    np.testing.assert_array_equal(tensor.read(), weight)
    np.testing.assert_array_equal(from_encoding(tensor), weight)
    assert_rows_agree(tensor)


@pytest.mark.parametrize(
    ("width", "group", "padded"), [(1152, 128, 16), (128, 128, 8), (1088, 64, 32), (512, 32, 32), (64, 16, 64)]
)
def test_gemv_with_its_padded_groups_is_decoded(width: int, group: int, padded: int, tmp_path: Path) -> None:
    stored, weight = gemv(5, width, group, padded)
    tensor = module(tmp_path, stored, group_size=group)
    np.testing.assert_array_equal(tensor.read(), weight)
    assert_rows_agree(tensor)
    assert isinstance(tensor.encoding, Affine)
    np.testing.assert_array_equal(tensor.encoding.codes(1, 3).view(np.int32), stored["p.qweight"][1:3])


def test_the_worked_example(tmp_path: Path) -> None:
    codes = [3, 14, 0, 7, 9, 1, 12, 5]
    stored = {
        "p.qweight": np.array([[0x517EC903], [0]], np.int32),
        "p.qzeros": np.array([[0x75316420]], np.int32),
        "p.scales": np.ones((1, 8), np.float16),
    }
    encoding = module(tmp_path, stored).encoding
    assert isinstance(encoding, Affine)
    assert not isinstance(encoding.zero, int)
    assert unpack(encoding.codes(0, 8), 4, 2)[:, 0].tolist() == codes
    assert encoding.zero(0, 8)[:, 0].tolist() == list(range(8))


def test_a_later_group_with_another_zero_point_is_not_overlooked(tmp_path: Path) -> None:
    stored, _ = gemm(16, 64, 16)
    stored["p.qzeros"] = np.zeros((4, 2), np.int32)
    stored["p.qzeros"][3, 1] = 5
    encoding = module(tmp_path, stored, group_size=16).encoding
    assert isinstance(encoding, Affine)
    assert not isinstance(encoding.zero, int)
    assert encoding.zero(8, 9).tolist() == [[0, 0, 0, 5]]


def test_gemv_fast_keeps_the_rounded_product_of_zero_point_and_scale() -> None:
    encoding = open_checkpoint(DATA / "gptqmodel-awq-gemv-fast").tensors["p.weight"].encoding
    assert isinstance(encoding, Affine)
    assert encoding.zero == 0
    assert encoding.offsets[0].dtype == np.float16


def test_the_names_of_an_old_quant_config_are_read(tmp_path: Path) -> None:
    stored, weight = gemv(4, 256, 64, 16)
    save(tmp_path, stored, None)
    (tmp_path / "quant_config.json").write_text('{"q_group_size": 64, "w_bit": 4, "version": "GEMV"}')
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.quantization == "AWQ"
    np.testing.assert_array_equal(checkpoint.tensors["p.weight"].read(), weight)


def test_a_module_that_should_not_be_converted_but_is_stored_quantized_is_read_as_stored(tmp_path: Path) -> None:
    stored, weight = gemm(8, 32, 16)
    tensor = module(tmp_path, stored, group_size=16, modules_to_not_convert=["p"])
    np.testing.assert_array_equal(tensor.read(), weight)


def test_a_version_that_the_shapes_contradict_does_not_matter(tmp_path: Path) -> None:
    stored, weight = gemm(8, 32, 16)
    np.testing.assert_array_equal(module(tmp_path, stored, group_size=64, version="gemv").read(), weight)


REFUSED: dict[str, tuple[dict[str, Array | None], str]] = {
    "no zero points": ({"p.qzeros": None}, "no p.qzeros"),
    "no codes": ({"p.scales": None}, "no p.scales"),
    "scales cut off": ({"p.scales": np.ones((4, 8), np.float16)}, "none of the layouts"),
    "codes cut off": ({"p.qweight": np.zeros((64, 1), np.int32)}, "none of the layouts"),
    "Marlin": ({"p.qweight": np.zeros((8, 32), np.int32)}, "none of the layouts"),
    "no group fits": ({"p.qweight": np.zeros((63, 2), np.int32)}, "4 groups for 63 columns"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused(case: str, tmp_path: Path) -> None:
    changes, reason = REFUSED[case]
    stored, _ = gemm(16, 64, 16)
    with pytest.raises(InputError, match=reason) as caught:
        module(tmp_path, stored | changes, group_size=32)
    assert str(tmp_path) in str(caught.value)


def test_scales_of_an_activation_are_a_tensor_of_their_own(tmp_path: Path) -> None:
    stored, _ = gemm(16, 64, 16)
    scales = np.linspace(0.5, 2, 64).astype(np.float16)
    save(tmp_path, stored | {"mlp.gelu.scales": scales}, {"quant_method": "awq", "group_size": 16})
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == {"p.weight", "mlp.gelu.scales"}
    np.testing.assert_array_equal(checkpoint.tensors["mlp.gelu.scales"].read(), scales)
    assert list(activation_scales(checkpoint)) == ["mlp.gelu.scales"]


@pytest.mark.parametrize("group", [128, None])
def test_padded_groups_that_the_group_size_does_not_give_are_refused(group: int | None, tmp_path: Path) -> None:
    stored, _ = gemv(4, 512, 32, 32)
    with pytest.raises(InputError, match="32 padded groups for 512 columns"):
        module(tmp_path, stored, group_size=group)


def test_gemv_fast_by_other_than_64_columns_is_refused(tmp_path: Path) -> None:
    floats = np.ones((16, 8), np.float16)
    stored = {"p.qweight": np.zeros((2, 32), np.int16), "p.qzeros": floats, "p.scales": floats}
    with pytest.raises(InputError, match="32 columns"):
        module(tmp_path, stored, group_size=64)
