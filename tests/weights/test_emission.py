"""What ONNX Runtime makes of packed weights: it multiplies the identity, and the weight must come back bit for bit.

Every weight here is an encoding of random numbers, kept as it is; activations are floats. ONNX Runtime runs each graph
as it is written and optimized, with all rows of the identity at once and one by one, which are different kernels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.encodings import (
    BFLOAT16,
    E2M1,
    FLOAT8_VALUES,
    FP4,
    NF4,
    SCALES,
    WHOLE_ROW,
    Drawn,
    affines,
    make_affine,
    make_codebook,
)
from tests.weights.graphs import WIDTH, attention, embedding, feeds, kinds, linear, model, packed, value
from tests.weights.stored import encoded, random, run_packed, stored
from truecast.checkpoint.gguf.encodings import IQ4_VALUES
from truecast.checkpoint.model import StoredTensor
from truecast.weights import packing
from truecast.weights.packing import Packer
from truecast.weights.precision import Precision

OWN = Precision("as-is", ir.DataType.FLOAT, activations="float", own=True)
ULP = 2.0**-23
"""Distance of neighbouring float32 numbers, in parts of the smaller one."""
TERM_ROUNDINGS = 2
"""Roundings, in units in the last place of the largest term, that a weight of two terms may be off by."""
IQ4 = np.array(IQ4_VALUES, np.float32)


def product_of(tensor: StoredTensor, bias: bool = False) -> Packer:
    """A graph of one product."""
    x = value("x", ir.DataType.FLOAT, "b", "n", tensor.shape[1])
    node = linear(x, "p.weight", (tensor.shape[0], tensor.shape[1]), "p.bias" if bias else "")
    arrays: dict[str, np.ndarray | StoredTensor] = {"p.weight": tensor}
    if bias:
        arrays["p.bias"] = random(tensor.shape[0])
    return packed(model([x], [node], [node.outputs[0]]), arrays, OWN)


def lookup_of(tensor: StoredTensor) -> Packer:
    """A graph of one lookup."""
    ids = value("ids", ir.DataType.INT64, "b", "n")
    node = embedding(ids, "e.weight", (tensor.shape[0], tensor.shape[1]))
    return packed(model([ids], [node], [node.outputs[0]]), {"e.weight": tensor}, OWN, "e.weight")


def weights_of(packer: Packer, width: int) -> Iterator[np.ndarray]:
    """The weight [rows, width] as a product has it, however ONNX Runtime runs the graph."""
    identity = np.eye(width, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for optimized in (False, True):
            for x in (identity[None], identity[:, None]):
                (result,) = run_packed(packer, Path(folder), {"x": x}, optimized)
                yield result.reshape(width, -1).T


def rows_of(packer: Packer, rows: int) -> Iterator[np.ndarray]:
    """The table [rows, width] as a lookup has it: every id once, and again in another order."""
    with tempfile.TemporaryDirectory() as folder:
        for optimized in (False, True):
            for ids in (np.arange(rows)[None], np.arange(rows)[::-1, None]):
                (result,) = run_packed(packer, Path(folder), {"ids": ids}, optimized)
                yield result.reshape(rows, -1)[ids.reshape(-1).argsort()]


def tensor_of(drawn: Drawn, name: str = "p.weight") -> StoredTensor:
    return encoded(name, drawn.encoding, (drawn.rows, drawn.width))


def assert_same(got: np.ndarray, drawn: Drawn, packer: Packer) -> None:
    """Bit for bit; where an offset was added to a product, within the roundings of its largest term."""
    two_terms = kinds(packer)["ReduceSum"] + kinds(packer)["GatherBlockQuantized"] > 0 and any(
        "offsets" in operand.name for binding in packer.bindings for operand in binding.operands
    )
    if not two_terms:
        np.testing.assert_array_equal(got, drawn.values)
        return
    limit = TERM_ROUNDINGS * ULP * drawn.terms
    assert (np.abs(got.astype(np.float64) - drawn.values) <= limit).all()


# Blocks of codes ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(affines())
def test_a_product_with_its_own_codes_has_the_very_weights(drawn: Drawn) -> None:
    packer = product_of(tensor_of(drawn))
    for got in weights_of(packer, drawn.width):
        assert_same(got, drawn, packer)


@settings(max_examples=60, deadline=None)
@given(affines(orders=False))
def test_a_lookup_of_its_own_codes_has_the_very_weights(drawn: Drawn) -> None:
    packer = lookup_of(tensor_of(drawn, "e.weight"))
    for got in rows_of(packer, drawn.rows):
        assert_same(got, drawn, packer)


@pytest.mark.parametrize("scales", sorted(SCALES))
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_kind_of_scale_is_multiplied_as_the_encoding_says(bits: int, scales: str) -> None:
    drawn = make_affine(3, bits, 32, (5, 32 * 12), scales=scales)
    packer = product_of(tensor_of(drawn))
    assert kinds(packer)["MatMulNBits"] == 1
    for got in weights_of(packer, drawn.width):
        np.testing.assert_array_equal(got, drawn.values)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("blocks", [1, 3, 4])
def test_zero_points_of_every_group_are_packed_row_by_row(bits: int, group: int, blocks: int) -> None:
    drawn = make_affine(4, bits, group, (3, group * blocks), zero="groups")
    packer = product_of(tensor_of(drawn))
    assert kinds(packer)["MatMulNBits"] == 1
    for got in weights_of(packer, drawn.width):
        np.testing.assert_array_equal(got, drawn.values)


@pytest.mark.parametrize(
    ("group", "width", "block"),
    [
        *((16, 48, 16), (32, 96, 32), (48, 96, 16), (96, 192, 32), (512, 1024, 256)),
        *((32, 40, 32), (128, 200, 128), (96, 200, 32), (512, 600, 256), (112, 128, 16)),
        *((WHOLE_ROW, 256, 128), (WHOLE_ROW, 192, 64), (WHOLE_ROW, 96, 32), (WHOLE_ROW, 80, 16), (WHOLE_ROW, 57, 16)),
        *((256, 128, 128), (64, 33, 16)),
    ],
)
@pytest.mark.parametrize("zero", ["middle", 3, "groups"])
def test_a_block_is_the_largest_that_divides_a_group(group: int, width: int, block: int, zero: int | str) -> None:
    drawn = make_affine(5, 4, group, (3, width), zero=zero, order=True)
    packer = product_of(tensor_of(drawn))
    node = next(node for node in packer.model.graph if node.op_type == "MatMulNBits")
    assert node.attributes["block_size"].as_int() == block
    for got in weights_of(packer, drawn.width):
        np.testing.assert_array_equal(got, drawn.values)


@pytest.mark.parametrize("group", [40, 8, 17])
def test_groups_that_no_block_divides_become_floats(group: int) -> None:
    drawn = make_affine(6, 4, group, (3, 4 * group))
    packer = product_of(tensor_of(drawn))
    assert kinds(packer)["MatMulNBits"] == 0
    for got in weights_of(packer, drawn.width):
        np.testing.assert_array_equal(got, drawn.values)


@pytest.mark.parametrize("zero", [-3, 16, 200])
def test_a_zero_point_that_is_no_code_is_not_cut_to_its_bits(zero: int) -> None:
    drawn = make_affine(6, 4, 32, (3, 64), zero=0)
    tensor = encoded("p.weight", replace(drawn.affine, zero=zero), (3, 64))
    assert not np.array_equal(tensor.read(), drawn.values)
    for got in weights_of(product_of(tensor), 64):
        np.testing.assert_array_equal(got, tensor.read())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero", [0, 1, "middle", "groups"])
@pytest.mark.parametrize("offsets", ["float16", "float16 · six bits", "float32"])
def test_offsets_are_within_two_roundings_of_the_larger_term(bits: int, zero: int | str, offsets: str) -> None:
    drawn = make_affine(7, bits, 32, (16, 32 * 8), zero=zero, scales="float16 · six bits", offsets=offsets)
    for packer, run, length in (
        (product_of(tensor_of(drawn)), weights_of, drawn.width),
        (lookup_of(tensor_of(drawn, "e.weight")), rows_of, drawn.rows),
    ):
        assert any(operand.name.endswith("codes") for operand in packer.bindings[0].operands)
        for got in run(packer, length):
            assert_same(got, drawn, packer)
            assert np.abs(got - drawn.values).max() <= 1e-6 * np.abs(drawn.values).max()


def test_a_scale_of_zero_leaves_the_minimum() -> None:
    drawn = make_affine(8, 4, 32, (4, 128), zero=0, scales="float16 · six bits", offsets="float16")
    coarse, fine = drawn.affine.scales
    mask = np.array([0, 1, 0, 0], np.uint8)
    some = replace(fine, read=lambda start, stop: fine.read(start, stop) * mask)
    tensor = encoded("p.weight", replace(drawn.affine, scales=(coarse, some)), (4, 128))
    want = tensor.read()
    assert len(np.unique(want[:, :32])) <= 4 < len(np.unique(want[:, 32:64]))
    for got in weights_of(product_of(tensor), 128):
        np.testing.assert_array_equal(got[:, :32], want[:, :32])
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("offsets", ["", "float16"])
@pytest.mark.parametrize("order", [False, True])
def test_a_bias_is_added_once(offsets: str, order: bool) -> None:
    drawn = make_affine(9, 4, 32, (5, 96), zero="groups", offsets=offsets, order=order)
    for got in weights_of(product_of(tensor_of(drawn), bias=True), drawn.width):
        np.testing.assert_allclose(got, drawn.values + random(5)[:, None], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 128, 129])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_any_number_of_outputs(bits: int, rows: int) -> None:
    drawn = make_affine(10, bits, 32, (rows, 96), zero="groups")
    for got in weights_of(product_of(tensor_of(drawn)), 96):
        np.testing.assert_array_equal(got, drawn.values)


# Codebooks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [NF4, FP4], ids=["nf4", "fp4"])
@pytest.mark.parametrize(("group", "width"), [(64, 64), (64, 192), (128, 256), (32, 96), (512, 512), (4096, 4096)])
@pytest.mark.parametrize("rows", [1, 5])
def test_bitsandbytes_codes_are_multiplied_as_they_are(table: np.ndarray, group: int, width: int, rows: int) -> None:
    drawn = make_codebook(11, table, group, (rows, width))
    packer = product_of(tensor_of(drawn))
    assert kinds(packer) == {"MatMulBnb4": 1}
    for got in weights_of(packer, width):
        np.testing.assert_array_equal(got, drawn.values)


@pytest.mark.parametrize("scales", ["float32", "float16", "float16 · six bits"])
def test_bitsandbytes_scales_are_one_number_per_block(scales: str) -> None:
    drawn = make_codebook(11, NF4, 512, (3, 1536), scales)
    packer = product_of(tensor_of(drawn))
    assert kinds(packer) == {"MatMulBnb4": 1}
    for got in weights_of(packer, 1536):
        np.testing.assert_array_equal(got, drawn.values)


@pytest.mark.parametrize("width", [63, 100])
def test_bitsandbytes_blocks_that_straddle_rows_become_floats(width: int) -> None:
    drawn = make_codebook(11, NF4, 64, (4, width))
    packer = product_of(tensor_of(drawn))
    assert kinds(packer)["MatMulBnb4"] == 0
    for got in weights_of(packer, width):
        np.testing.assert_array_equal(got, drawn.values)


@pytest.mark.parametrize("table", [E2M1, IQ4], ids=["e2m1", "iq4"])
@pytest.mark.parametrize(("group", "width"), [(16, 80), (32, 96), (32, 70)])
@pytest.mark.parametrize("scales", ["float16", "float8 · float32 per row"])
def test_tables_of_small_integers_are_multiplied_as_bytes(
    table: np.ndarray, group: int, width: int, scales: str
) -> None:
    drawn = make_codebook(12, table, group, (5, width), scales)
    packer = product_of(tensor_of(drawn))
    assert kinds(packer)["MatMulNBits"] == 1
    for got in weights_of(packer, width):
        np.testing.assert_array_equal(got, drawn.values)


@pytest.mark.parametrize(
    ("group", "width", "scales"),
    [
        *((WHOLE_ROW, 96, "float32"), (WHOLE_ROW, 57, "bfloat16"), (128, 384, "float32"), (128, 256, "bfloat16")),
        *((32, 96, "float32"), (200, 100, "float32"), (128, 300, "float32")),
    ],
)
def test_float8_bytes_stay_as_they_are(group: int, width: int, scales: str) -> None:
    drawn = make_codebook(13, FLOAT8_VALUES, group, (5, width), scales)
    packers = (product_of(tensor_of(drawn)), lookup_of(tensor_of(drawn, "e.weight")))
    for packer in packers:
        assert packer.bindings[0].operands[0].dtype == ir.DataType.FLOAT8E4M3FN
        assert packer.bindings[0].own
    for got in (*weights_of(packers[0], width), *rows_of(packers[1], 5)):
        np.testing.assert_array_equal(got, drawn.values)


# Floats ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [BFLOAT16, np.float16, np.float32], ids=["bfloat16", "float16", "float32"])
def test_floats_stay_in_the_dtype_of_the_checkpoint(dtype: type) -> None:
    weight = random(7, 40).astype(dtype)
    packers = (product_of(stored("p.weight", weight)), lookup_of(stored("e.weight", weight)))
    for packer in packers:
        assert packer.bindings[0].operands[0].dtype.numpy() == np.dtype(dtype)
    for got in (*weights_of(packers[0], 40), *rows_of(packers[1], 7)):
        np.testing.assert_array_equal(got, weight.astype(np.float32))


# Embedding and head ---------------------------------------------------------------------------------------------------


def language_model(embed: StoredTensor, head: StoredTensor | None) -> Packer:
    """Logits for ids: the table's rows, times the head."""
    ids = value("ids", ir.DataType.INT64, "b", "n")
    tokens = embedding(ids, "embed.weight", (embed.shape[0], embed.shape[1]))
    last = linear(tokens.outputs[0], "head.weight", (embed.shape[0], embed.shape[1]))
    arrays: dict[str, np.ndarray | StoredTensor] = {"embed.weight": embed} | ({"head.weight": head} if head else {})
    links = {} if head else {"head.weight": "embed.weight"}
    graph = model([ids], [tokens, last], [last.outputs[0], tokens.outputs[0]])
    return packed(graph, arrays, OWN, "embed.weight", "head.weight", links)


def logits(packer: Packer, rows: int, folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits and rows of every id."""
    for optimized in (False, True):
        result, table = run_packed(packer, folder, {"ids": np.arange(rows)[None]}, optimized)
        yield result[0], table[0]


TABLES = {
    "4 bits": lambda: tensor_of(make_affine(14, 4, 32, (33, 96), zero="groups"), "embed.weight"),
    "a last block in part": lambda: tensor_of(make_affine(15, 4, 32, (33, 80)), "embed.weight"),
    "8 bits in 16s": lambda: tensor_of(make_affine(14, 8, 16, (33, 48), scales="float16 · six bits"), "embed.weight"),
    "2 bits with offsets": lambda: tensor_of(
        make_affine(14, 2, 16, (33, 64), zero=0, offsets="float16"), "embed.weight"
    ),
    "iq4": lambda: tensor_of(make_codebook(14, IQ4, 32, (33, 64), "float16"), "embed.weight"),
    "float8": lambda: tensor_of(make_codebook(14, FLOAT8_VALUES, WHOLE_ROW, (33, 64)), "embed.weight"),
    "bfloat16": lambda: stored("embed.weight", random(33, 64).astype(BFLOAT16)),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_tied_head_and_the_lookup_share_one_table(kind: str, tmp_path: Path) -> None:
    tensor = TABLES[kind]()
    packer = language_model(tensor, None)
    names = {operand.name for binding in packer.bindings for operand in binding.operands}
    assert all(name.startswith("embed.weight") for name in names)
    assert sum(name in ("embed.weight", "embed.weight.codes") for name in names) == 1
    want = tensor.read().astype(np.float32)
    for got, table in logits(packer, 33, tmp_path):
        np.testing.assert_allclose(table, want, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(got, want @ want.T, atol=1e-4 * np.abs(want @ want.T).max())


@pytest.mark.parametrize("kind", ["ordered columns", "nf4"])
def test_a_tied_table_that_no_lookup_reads_in_blocks_is_held_twice(kind: str, tmp_path: Path) -> None:
    drawn = {
        "ordered columns": make_affine(15, 4, 32, (33, 96), order=True),
        "nf4": make_codebook(15, NF4, 64, (33, 128)),
    }[kind]
    packer = language_model(tensor_of(drawn, "embed.weight"), None)
    assert {operand.name for binding in packer.bindings for operand in binding.operands} >= {"embed.weight"}
    for got, table in logits(packer, 33, tmp_path):
        np.testing.assert_array_equal(table, drawn.values)
        np.testing.assert_allclose(got, drawn.values @ drawn.values.T, atol=1e-4 * np.abs(got).max())


def test_a_quantized_head_beside_a_float_embedding_stays_apart(tmp_path: Path) -> None:
    head = make_affine(16, 4, 32, (33, 64))
    embed = random(33, 64)
    packer = language_model(stored("embed.weight", embed), tensor_of(head, "head.weight"))
    assert (kinds(packer)["Gather"], kinds(packer)["MatMulNBits"]) == (1, 1)
    for got, table in logits(packer, 33, tmp_path):
        np.testing.assert_array_equal(table, embed)
        np.testing.assert_allclose(got, embed @ head.values.T, atol=1e-5)


# Queries, keys and values ---------------------------------------------------------------------------------------------

PARTS = {"q": 32, "k": 16, "v": 16}


def projections(**unlike: Drawn) -> dict[str, Drawn]:
    """Three weights that are alike, but for those given."""
    return {name: make_affine(20, 4, 32, (size, WIDTH), zero="groups") for name, size in PARTS.items()} | unlike


def attended(drawn: dict[str, Drawn]) -> Packer:
    arrays: dict[str, np.ndarray | StoredTensor] = {
        f"a.{part}_proj.weight": tensor_of(weight, f"a.{part}_proj.weight") for part, weight in drawn.items()
    }
    arrays |= {f"a.{part}_proj.bias": random(size) for part, size in PARTS.items()}
    return packed(attention(), arrays, OWN)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"zero": "groups", "scales": "float16 · six bits"},
        {"zero": 0, "offsets": "float16"},
        {"bits": 2, "scales": "bfloat16"},
        {"bits": 8},
    ],
    ids=str,
)
def test_queries_keys_and_values_that_are_alike_become_one_product(
    options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = int(str(options.pop("bits", 4)))
    drawn = {
        name: make_affine(size, bits, 32, (size, WIDTH), **options)  # type: ignore[arg-type]
        for name, size in PARTS.items()
    }
    together = attended(drawn)
    assert kinds(together)["MatMulNBits"] == 1
    results = run_packed(together, tmp_path, feeds())
    monkeypatch.setattr(packing, "attention_groups", lambda nodes: [])
    apart = attended(drawn)
    assert kinds(apart)["MatMulNBits"] == 3
    for got, want in zip(results, run_packed(apart, tmp_path, feeds()), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def unlike(size: int, **options: object) -> Drawn:
    settings: dict[str, object] = {"bits": 4, "group": 32, "zero": "groups"} | options
    bits, group = int(str(settings.pop("bits"))), int(str(settings.pop("group")))
    return make_affine(21, bits, group, (size, WIDTH), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "weights",
    [
        projections(v=unlike(16, bits=8)),
        projections(v=unlike(16, group=16)),
        projections(k=unlike(16, order=True)),
        projections(k=unlike(16, scales="bfloat16")),
        projections(k=unlike(16, scales="float16 · six bits")),
        projections(v=unlike(16, offsets="float16")),
        projections(v=unlike(16, zero="middle")),
        {name: make_affine(size, 4, 32, (size, WIDTH), order=True) for name, size in PARTS.items()},
        projections(v=make_codebook(1, NF4, 64, (16, WIDTH))),
    ],
    ids=["bits", "group", "order", "dtype", "factors", "offsets", "zero points", "orders", "codebook"],
)
def test_products_that_are_unlike_stay_apart(weights: dict[str, Drawn], tmp_path: Path) -> None:
    packer = attended(weights)
    assert kinds(packer)["MatMulNBits"] + kinds(packer)["MatMulBnb4"] == 3
    q, k, v = (weights[part].values for part in "qkv")
    bias = {part: random(size) for part, size in PARTS.items()}
    fed = feeds()
    got = run_packed(packer, tmp_path, fed)[2]
    np.testing.assert_allclose(got[:, 0], fed["x"] @ v.T + bias["v"], rtol=1e-4, atol=1e-4)
    assert q.shape != k.shape


def test_orders_that_are_the_same_still_make_one_product(tmp_path: Path) -> None:
    drawn = {name: make_affine(20, 4, 32, (size, WIDTH), order=True) for name, size in PARTS.items()}
    order = drawn["q"].affine.order
    same = {name: replace(one, encoding=replace(one.affine, order=order)) for name, one in drawn.items()}
    packer = attended(same)
    assert (kinds(packer)["MatMulNBits"], kinds(packer)["Gather"]) == (1, 1)
    fed = feeds()
    value_weight = tensor_of(same["v"]).read()
    got = run_packed(packer, tmp_path, fed)[2]
    np.testing.assert_allclose(got[:, 0], fed["x"] @ value_weight.T + random(16), rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1 << 20), st.sampled_from((2, 4, 8)), st.sampled_from(("", "float16")))
def test_one_product_has_the_rows_of_three(seed: int, bits: int, offsets: str) -> None:
    drawn = {
        name: make_affine(seed, bits, 16, (size, WIDTH), zero="groups", offsets=offsets) for name, size in PARTS.items()
    }
    packer = attended(drawn)
    assert kinds(packer)["MatMulNBits"] == 1
    fed = feeds()
    with tempfile.TemporaryDirectory() as folder:
        got = run_packed(packer, Path(folder), fed)[2]
    np.testing.assert_allclose(got[:, 0], fed["x"] @ drawn["v"].values.T + random(16), rtol=1e-4, atol=1e-4)
