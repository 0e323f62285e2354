"""Tier 1, the weights: every way in which one may not be the checkpoint's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from tests.proof.conftest import Artifact
from tests.proof.planting import (
    DATA,
    change_data,
    change_graph,
    change_manifest,
    failed,
    manifest_of,
    place_of,
    reprove,
)
from truecast.checkpoint import open_checkpoint
from truecast.proof.held import HeldWeight, array_of, held_weights, load_graph
from truecast.proof.reading import Quantization
from truecast.proof.reference import Reference
from truecast.proof.weights import _block_shares, value_check
from truecast.weights.quantize import dequantize_rows, quantize_rows

CASE = "gemma3_text"
VALUES = "weights are the checkpoint's"
ACCOUNT = "weights accounted for"
O_PROJ = "model.layers.1.self_attn.o_proj.weight"


def test_bytes_that_changed_fail_their_hash(spoilable: Artifact) -> None:
    folder = spoilable(CASE, "int4")
    offset, _ = place_of(folder, f"{O_PROJ}.codes")
    with (folder / DATA).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    found = failed(reprove(folder))["hashes of the weights"]
    assert f"{O_PROJ}.codes" in found.detail


def test_any_flipped_nibble_is_beyond_the_bound(made: Artifact) -> None:
    """The bound is sharp: one code up or down is always more than rounding to nearest leaves."""
    folder = made(CASE, "int4")
    manifest = manifest_of(folder)
    reference = Reference.build(open_checkpoint(manifest.source.path))
    weights = held_weights(load_graph(folder, "model.onnx"), manifest.weights, reference.sources)
    weight = weights[O_PROJ]
    model = load_graph(folder, "model.onnx")
    codes, scales = (array_of(model, name) for name in weight.initializers)
    for position in np.random.default_rng(0).integers(0, codes.size, 40):
        spoiled = np.array(codes)
        low = int(codes.reshape(-1)[position]) & 15
        spoiled.reshape(-1)[position] ^= low ^ (low + 1 if low < 15 else 14)
        rows = dequantize_rows(spoiled, scales, 4, weight.shape[1])
        spoilt_weight = {O_PROJ: replace(weight, read=rows_from(rows))}
        check, faults = value_check(reference, spoilt_weight)
        assert not check.passed and faults[0].parameter == O_PROJ


def rows_from(array: np.ndarray) -> Callable[[int, int], np.ndarray]:
    return lambda start, stop: array[start:stop]


def test_a_scale_too_large_does_not_excuse_itself() -> None:
    """All codes zero with a huge scale are within half of *that* scale's step; the bound is the checkpoint's."""
    values = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    held = np.zeros_like(values)
    form = Quantization(4, 32)
    weight = HeldWeight("w", ("c", "s"), (4, 64), False, form, rows_from(held), np.dtype(np.float32))
    assert _block_shares(values, held, weight).max() > 1


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "both ends", "zeros", "one sign"])
def test_rounding_to_nearest_always_stays_within_the_bound(bits: int, kind: str) -> None:
    random = np.random.default_rng(3)
    values = random.standard_normal((50, 80)).astype(np.float32)
    if kind == "heavy tails":
        values = values**5
    elif kind == "both ends":
        values[:, ::32], values[:, 1::32] = 3, -3
    elif kind == "zeros":
        values[::2] = 0
    elif kind == "one sign":
        values = np.abs(values)
    codes, scales = quantize_rows(values, bits, 32)
    held = dequantize_rows(codes, scales, bits, 80)
    form = Quantization(bits, 32)
    weight = HeldWeight("w", ("c", "s"), values.shape, False, form, rows_from(held), np.dtype(np.float32))
    assert _block_shares(values, held, weight).max() <= 1


def test_an_initializer_that_no_weight_lists_is_found(spoilable: Artifact) -> None:
    folder = spoilable(CASE, "fp32")
    change_manifest(folder, weights=[info for info in manifest_of(folder).weights if O_PROJ not in info.sources])
    detail = failed(reprove(folder))[ACCOUNT].detail
    assert f"{O_PROJ}.transposed is in the graph but not in the manifest" in detail
    assert f"tensor {O_PROJ} is neither used nor ignored" in detail


def test_a_weight_that_the_graph_lacks_is_found(spoilable: Artifact) -> None:
    folder = spoilable(CASE, "fp32")
    first = manifest_of(folder).weights[0]
    ghost = first.model_copy(update={"initializers": ["ghost"], "sources": ["nowhere"]})
    change_manifest(folder, weights=[*manifest_of(folder).weights, ghost])
    detail = failed(reprove(folder))[ACCOUNT].detail
    assert "ghost is in the manifest but not in the graph" in detail
    assert "tensor nowhere is not in the checkpoint" in detail


def test_a_buffer_that_is_not_the_authors_is_found(spoilable: Artifact) -> None:
    def spoil(model: ir.Model) -> None:
        name = "model.rotary_emb.sliding_attention_inv_freq"
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.001), name=name)

    folder = spoilable(CASE, "fp32")
    change_graph(folder, spoil)
    found = failed(reprove(folder))
    assert "is not the author's buffer" in found["constants"].detail
    assert "as shipped against the original" in found


def test_a_large_constant_in_the_graph_file_is_found(spoilable: Artifact) -> None:
    def spoil(model: ir.Model) -> None:
        value = ir.Value(name="stowaway", const_value=ir.tensor(np.zeros(20_000, np.float32), name="stowaway"))
        model.graph.initializers.add(value)

    folder = spoilable(CASE, "fp32")
    change_graph(folder, spoil)
    assert "stowaway" in failed(reprove(folder))["constants"].detail


def test_a_dense_weight_must_be_the_very_same_after_the_cast(spoilable: Artifact) -> None:
    def last_bit(array: np.ndarray) -> None:
        array[0] ^= 1

    folder = spoilable(CASE, "fp16")
    change_data(folder, f"{O_PROJ}.transposed", last_bit)
    assert O_PROJ in failed(reprove(folder))[VALUES].detail


def test_rotary_tables_are_compared_at_every_position(spoilable: Artifact) -> None:
    def last_row(array: np.ndarray) -> None:
        array[-4:] = np.array([0.123], np.float32).view(np.uint8)

    folder = spoilable("llama", "int4", "genai")
    tables = [info.initializers[0] for info in manifest_of(folder).weights if not info.sources]
    assert tables
    change_data(folder, tables[0], last_row)
    assert tables[0] in failed(reprove(folder))["rotary tables are the author's"].detail
