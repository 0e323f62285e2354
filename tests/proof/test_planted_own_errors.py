"""Errors in artifacts that keep the checkpoint's own codes: even the smallest must fail the proof, and be located."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.proof.planting import change_data, change_graph, failed, node_of, reprove
from truecast.artifact import Status
from truecast.exporting import export
from truecast.request import Request

DATA = Path(__file__).parents[1] / "data"
ORDERED, ZEROS, OFFSETS = "gptqmodel-act-order", "auto-round-awq", "hqq-axis1"
FLOAT8, NF4, ROWS8 = "auto-round-fp8-blocks", "bitsandbytes-nf4", "auto-round-gptq-8bit-row"
VALUES = "weights are the checkpoint's"
EXACT = "exact products against the original with these weights"
LEVELS = "activations as in the manifest"

DOWN = "model.layers.{}.mlp.down_proj"
OUT = "model.layers.{}.self_attn.o_proj"
"""A product with offsets in every layer of `OFFSETS`, and one that stays by itself."""

Change = Callable[[np.ndarray], None]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Casts a true checkpoint as it is, once, and does not prove it; no test may change the result."""
    folder = tmp_path_factory.mktemp("own")

    def make(name: str, activations: str) -> Path:
        out = folder / f"{name}-{activations}"
        if not out.exists():
            export(DATA / name, out, Request(precision="as-is", activations=activations, verify=False))
        return out

    return make


@dataclass(frozen=True)
class Plant:
    """An error: in which checkpoint's artifact, what it does, and what the proof must say of it."""

    name: str
    checkpoint: str
    spoil: Callable[[Path], None]
    layer: int | None
    node: str
    says: str
    fails: str = VALUES
    kind: str = "weight"
    activations: str = "int8"


def in_data(initializer: str, change: Change) -> Callable[[Path], None]:
    return lambda folder: change_data(folder, initializer, change)


def in_graph(change: Callable[[ir.Model], None]) -> Callable[[Path], None]:
    return lambda folder: change_graph(folder, change)


def flip(place: int, bits: int) -> Change:
    def change(array: np.ndarray) -> None:
        array[place] ^= bits

    return change


def next_half(array: np.ndarray) -> None:
    """The first float16 becomes its neighbour."""
    halves = array.view(np.float16)
    halves[0] = np.nextafter(halves[0], np.float16(np.inf))


def next_float(array: np.ndarray) -> None:
    floats = array.view(np.float32)
    floats[0] = np.nextafter(floats[0], np.float32(np.inf))


def swap_two_columns(array: np.ndarray) -> None:
    columns = array.view(np.int64)
    columns[[3, 40]] = columns[[40, 3]]


def swap_nibbles(array: np.ndarray) -> None:
    array[:] = array << 4 | array >> 4


def swap_inputs(first: tuple[str, int], second: tuple[str, int]) -> Callable[[Path], None]:
    """Exchanges two inputs, each given as (node, number)."""

    def change(model: ir.Model) -> None:
        (a, i), (b, j) = ((node_of(model, name), index) for name, index in (first, second))
        left, right = a.inputs[i], b.inputs[j]
        a.replace_input_with(i, right)
        b.replace_input_with(j, left)

    return in_graph(change)


def swap_keys_and_values(model: ir.Model) -> None:
    """Keys and values have the same shape; a merged product that splits them the wrong way round still runs."""
    attention = node_of(model, "model.layers.1/GroupQueryAttention_1")
    split = next(
        node for node in model.graph if node.op_type == "Split" and (node.name or "").startswith("model.layers.1.")
    )
    keys, values = split.outputs[1:]
    readers = [(use.node, use.idx) for use in keys.uses()]
    (reader,) = [(use.node, use.idx) for use in values.uses()]
    for node, index in readers:
        node.replace_input_with(index, values)
    reader[0].replace_input_with(reader[1], keys)
    assert attention.op_type == "GroupQueryAttention"


def leave_out_offsets(model: ir.Model) -> None:
    total, product = (node_of(model, name) for name in (OUT.format(1), f"{OUT.format(1)}.product"))
    ir.convenience.replace_all_uses_with(total.outputs[0], product.outputs[0])
    model.graph.remove(total, safe=True)


def int8_activations(model: ir.Model) -> None:
    node_of(model, DOWN.format(1)).attributes.add(ir.AttrInt64("accuracy_level", 4))


PLANTS = [
    Plant(
        "a flipped bit of one code",
        ORDERED,
        in_data(f"{DOWN.format(1)}.weight.codes", flip(37, 0x10)),
        1,
        DOWN.format(1),
        f"{DOWN.format(1)}.weight is not the checkpoint's",
    ),
    Plant(
        "a float16 scale that is one unit off in its last place",
        ORDERED,
        in_data(f"{DOWN.format(1)}.weight.scales", next_half),
        1,
        DOWN.format(1),
        f"{DOWN.format(1)}.weight is not the checkpoint's ({DOWN.format(1)}.weight, row 0)",
    ),
    Plant(
        "two columns in the wrong order",
        ORDERED,
        in_data("column_order.3", swap_two_columns),
        1,
        "model.layers.1.mlp.gate_proj+up_proj",
        "1 other weights differ too",
    ),
    Plant(
        "the order of another product",
        ORDERED,
        swap_inputs(("model.layers.1/Gather_3", 1), ("model.layers.0/Gather_3", 1)),
        0,
        "model.layers.0.mlp.gate_proj+up_proj",
        "3 other weights differ too",
    ),
    Plant(
        "codes of another layer",
        ORDERED,
        swap_inputs((DOWN.format(0), 1), (DOWN.format(1), 1)),
        0,
        DOWN.format(0),
        "1 other weights differ too",
    ),
    Plant(
        "scales of another layer",
        ORDERED,
        swap_inputs((DOWN.format(0), 2), (DOWN.format(1), 2)),
        0,
        DOWN.format(0),
        "1 other weights differ too",
    ),
    Plant(
        "a changed zero point",
        ZEROS,
        in_data(f"{DOWN.format(0)}.weight.zeros", flip(5, 1)),
        0,
        DOWN.format(0),
        f"{DOWN.format(0)}.weight is not the checkpoint's ({DOWN.format(0)}.weight, row 2)",
    ),
    Plant(
        "zero points left out",
        ZEROS,
        in_graph(lambda model: node_of(model, DOWN.format(1)).replace_input_with(3, None)),
        1,
        DOWN.format(1),
        f"{DOWN.format(1)}.weight is not the checkpoint's",
    ),
    Plant(
        "keys and values of a merged product swapped",
        ORDERED,
        in_graph(swap_keys_and_values),
        1,
        "model.layers.1/RotaryEmbedding_2",
        "keys of layer 1",
        EXACT,
        "converter",
    ),
    Plant(
        "offsets of another layer",
        OFFSETS,
        swap_inputs((f"{OUT.format(0)}.moved", 1), (f"{OUT.format(1)}.moved", 1)),
        0,
        f"{OUT.format(0)}.product",
        "1 other weights differ too",
    ),
    Plant(
        "offsets left out",
        OFFSETS,
        in_graph(leave_out_offsets),
        1,
        f"{OUT.format(1)}.product",
        f"{OUT.format(1)}.weight is not the checkpoint's",
    ),
    Plant(
        "one bit of a float8 number",
        FLOAT8,
        in_data("model.layers.0.mlp.down_proj.weight", flip(161, 1)),
        0,
        "model.layers.0.mlp.down_proj",
        "model.layers.0.mlp.down_proj.weight is not the checkpoint's (model.layers.0.mlp.down_proj.weight, row 1)",
    ),
    Plant(
        "nibbles the other way round",
        NF4,
        in_data("model.layers.1.self_attn.o_proj.weight.codes", swap_nibbles),
        1,
        "model.layers.1.self_attn.o_proj",
        "model.layers.1.self_attn.o_proj.weight is not the checkpoint's",
    ),
    Plant(
        "the table of FP4 for NF4",
        NF4,
        in_graph(lambda model: node_of(model, DOWN.format(0)).attributes.add(ir.AttrInt64("quant_type", 0))),
        0,
        DOWN.format(0),
        f"{DOWN.format(0)}.weight is not the checkpoint's",
    ),
    Plant(
        "a float32 scale that is one unit off in its last place",
        NF4,
        in_data(f"{DOWN.format(1)}.weight.scales", next_float),
        1,
        DOWN.format(1),
        f"{DOWN.format(1)}.weight is not the checkpoint's ({DOWN.format(1)}.weight, row 0)",
    ),
]


def spoiled(plant: Plant, exported: Callable[[str, str], Path], tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(exported(plant.checkpoint, plant.activations), tmp_path / "artifact"))
    plant.spoil(folder)
    return folder


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_error_is_caught_and_located(
    plant: Plant, exported: Callable[[str, str], Path], tmp_path: Path
) -> None:
    certificate = reprove(spoiled(plant, exported, tmp_path))
    assert certificate.status is Status.FAILED
    assert plant.fails in failed(certificate), sorted(failed(certificate))
    note = certificate.notes[0]
    found = re.match(r"First divergence: (?:layer (\d+)|outside the layers), node '([^']+)' \((\w+)\): (.*)", note)
    assert found is not None, note
    assert (found[1] and int(found[1]), found[2], found[3]) == (plant.layer, plant.node, plant.kind), note
    assert plant.says in found[4], note


@pytest.mark.parametrize("checkpoint", [ORDERED, ROWS8])
def test_int8_activations_that_nobody_asked_for_are_found(
    checkpoint: str, exported: Callable[[str, str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported(checkpoint, "float"), tmp_path / "artifact"))
    change_graph(folder, int8_activations)
    found = failed(reprove(folder))
    assert set(found) == {LEVELS}
    assert DOWN.format(1) in found[LEVELS].detail


@pytest.mark.parametrize("checkpoint", [ORDERED, ZEROS, OFFSETS, FLOAT8, NF4, ROWS8])
@pytest.mark.parametrize("activations", ["int8", "float"])
def test_a_sound_artifact_is_proven(checkpoint: str, activations: str, exported: Callable[[str, str], Path]) -> None:
    if checkpoint == FLOAT8 and activations == "float":
        pytest.skip("has no codes whose products take activations")
    certificate = reprove(exported(checkpoint, activations))
    assert not failed(certificate), failed(certificate)
    assert certificate.status is Status.PROVEN
