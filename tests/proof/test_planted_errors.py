"""Every kind of error that an exporter makes: the proof must fail, and bisection must say where and why."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.proof.conftest import Artifact
from tests.proof.planting import change_data, change_graph, failed, node_of, reprove
from truecast.artifact import Status

CASE = "gemma3_text"
"""Three layers: sliding, full, sliding; norms of queries and keys; norms in front and behind; a tied head."""

LOGITS = "as shipped against the original"
EXACT = "exact products against the original with these weights"
VALUES = "weights are the checkpoint's"


@dataclass(frozen=True)
class Plant:
    """An error: what it does to a folder, which check must fail, and what the bisection must say."""

    name: str
    precision: str
    spoil: Callable[[Path], None]
    fails: str
    layer: int | None
    node: str
    kind: str
    says: str = ""


def in_graph(change: Callable[[ir.Model], None]) -> Callable[[Path], None]:
    return lambda folder: change_graph(folder, change)


def attribute(node: str, name: str, value: float) -> Callable[[Path], None]:
    def change(model: ir.Model) -> None:
        kind = ir.AttrInt64 if isinstance(value, int) else ir.AttrFloat32
        node_of(model, node).attributes.add(kind(name, value))

    return in_graph(change)


def swap_inputs(first: tuple[str, int], second: tuple[str, int]) -> Callable[[Path], None]:
    """Exchanges two inputs, each given as (node, number)."""

    def change(model: ir.Model) -> None:
        (a, i), (b, j) = ((node_of(model, name), index) for name, index in (first, second))
        left, right = a.inputs[i], b.inputs[j]
        a.replace_input_with(i, right)
        b.replace_input_with(j, left)

    return in_graph(change)


def swapped_products(folder: Path) -> None:
    for index in (1, 2):
        swap_inputs((FUSED.format(1), index), (FUSED.format(2), index))(folder)


def flip_nibble(array: np.ndarray) -> None:
    array[37] ^= 0x10


def to_nan(array: np.ndarray) -> None:
    array[:4] = np.array([np.nan], np.float32).view(np.uint8)


def double_scale(array: np.ndarray) -> None:
    array[:4] = (2 * array[:4].view(np.float32)).view(np.uint8)


FUSED = "model.layers.{}.self_attn.q_proj+k_proj+v_proj"
QUERY = "model.layers.{}.self_attn.q_proj"
ATTENTION = "model.layers.{}/GroupQueryAttention_1"
DOWN = "model.layers.1.mlp.down_proj"

PLANTS = [
    Plant(
        "weights of two layers swapped",
        "fp32",
        swap_inputs((QUERY.format(1), 1), (QUERY.format(2), 1)),
        LOGITS,
        1,
        QUERY.format(1),
        "weight",
        "reads model.layers.2.self_attn.q_proj.weight",
    ),
    Plant(
        "quantized weights of two layers swapped",
        "int4",
        swapped_products,
        EXACT,
        1,
        FUSED.format(1),
        "weight",
        "belongs to another module",
    ),
    Plant(
        "wrong epsilon in a norm",
        "fp32",
        attribute("model.layers.1/SimplifiedLayerNormalization_5", "epsilon", 1e-5),
        LOGITS,
        1,
        "model.layers.1/SimplifiedLayerNormalization_5",
        "converter",
        "epsilon is 1e-05, the author's is 0.003",
    ),
    Plant(
        "dropped window",
        "fp32",
        attribute(ATTENTION.format(2), "local_window_size", -1),
        LOGITS,
        2,
        ATTENTION.format(2),
        "converter",
        "local_window_size is -1, the author's is 8",
    ),
    Plant(
        "window one too long",
        "int4",
        attribute(ATTENTION.format(0), "local_window_size", 9),
        EXACT,
        0,
        ATTENTION.format(0),
        "converter",
        "local_window_size is 9, the author's is 8",
    ),
    Plant(
        "wrong scale of attention",
        "int4",
        attribute(ATTENTION.format(1), "scale", 0.21),
        EXACT,
        1,
        ATTENTION.format(1),
        "converter",
        "scale is 0.21, the author's is 0.204124",
    ),
    Plant(
        "cos and sin swapped",
        "fp32",
        swap_inputs(("model.layers.2/RotaryEmbedding_2", 2), ("model.layers.2/RotaryEmbedding_2", 3)),
        LOGITS,
        2,
        "model.layers.2/RotaryEmbedding_2",
        "converter",
        "keys of layer 2",
    ),
    Plant(
        "a flipped nibble",
        "int4",
        lambda folder: change_data(folder, f"{DOWN}.weight.codes", flip_nibble),
        VALUES,
        1,
        DOWN,
        "weight",
        f"{DOWN}.weight is not the checkpoint's",
    ),
    Plant(
        "a doubled scale",
        "int4",
        lambda folder: change_data(folder, f"{DOWN}.weight.scales", double_scale),
        VALUES,
        1,
        DOWN,
        "weight",
        f"{DOWN}.weight is not the checkpoint's",
    ),
    Plant(
        "a changed dense weight",
        "fp32",
        lambda folder: change_data(folder, "model.layers.0.self_attn.q_norm.weight", double_scale),
        VALUES,
        0,
        "model.layers.0/SimplifiedLayerNormalization_2",
        "weight",
        "model.layers.0.self_attn.q_norm.weight is not the checkpoint's",
    ),
    Plant(
        "NaN in the data file",
        "int4",
        lambda folder: change_data(folder, f"{DOWN}.weight.scales", to_nan),
        VALUES,
        1,
        DOWN,
        "weight",
    ),
    Plant(
        "position ids shifted",
        "fp32",
        in_graph(lambda model: _shift_positions(model)),
        LOGITS,
        0,
        "model.layers.0/RotaryEmbedding_1",
        "converter",
        "queries of layer 0",
    ),
]


def _shift_positions(model: ir.Model) -> None:
    """Positions counted from the last one, so that only their differences in a row are right."""
    positions = next(value for value in model.graph.inputs if value.name == "position_ids")
    uses = list(positions.uses())
    flipped = ir.node("Neg", [positions])
    flipped.outputs[0].name = "flipped"
    model.graph.insert_before(uses[0].node, flipped)
    for use in uses:
        use.node.replace_input_with(use.idx, flipped.outputs[0])


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_error_is_caught_and_located(plant: Plant, spoilable: Artifact) -> None:
    folder = spoilable(CASE, plant.precision)
    plant.spoil(folder)
    certificate = reprove(folder)
    assert certificate.status is Status.FAILED
    assert plant.fails in failed(certificate), sorted(failed(certificate))
    note = certificate.notes[0]
    found = re.match(r"First divergence: (?:layer (\d+)|outside the layers), node '([^']+)' \((\w+)\): (.*)", note)
    assert found is not None, note
    assert (found[1] and int(found[1]), found[2], found[3]) == (plant.layer, plant.node, plant.kind), note
    assert plant.says in found[4], note


@pytest.mark.parametrize("precision", ["fp32", "int4", "int8", "fp16"])
def test_a_sound_artifact_is_proven(precision: str, made: Artifact) -> None:
    certificate = reprove(made(CASE, precision))
    assert not failed(certificate), failed(certificate)
    assert certificate.status is Status.PROVEN
