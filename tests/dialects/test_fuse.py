"""Rotation moved into the attention operator gives the same numbers, and stays outside where it could not."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from tests.dialects.running import run_graph
from truecast.dialects.ort.expand import expand
from truecast.dialects.ort.fuse import fuse_rotary, pack_heads

HEADS, KV_HEADS, WIDTH, POSITIONS, PAST, NEW = 4, 2, 32, 24, 6, 5

GRAPH = """
<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1, "truecast": 1]>
step (int64[B, S] input_ids, int64[B, S] position_ids, float[B, S, 128] q, float[B, S, 64] k, float[B, S, 64] v,
      float[B, 2, P, 32] past_key, float[B, 2, P, 32] past_value, int32[B] last, int32 total)
     => (float[B, S, 128] out, float[B, 2, T, 32] key, float[B, 2, T, 32] value)
<float[B, S, W] cos, float[B, S, W] sin>
{{
    length = ReduceMax <keepdims = 0> (position_ids)
    limit = Constant <value_int = {limit}> ()
    long = Greater (length, limit)
    slow = Constant <value_float = 0.5> ()
    fast = Constant <value_float = 1.0> ()
    speed = Where (long, slow, fast)
    numbers = Cast <to = 1> (position_ids)
    column = Constant <value_ints = [2]> ()
    place = Unsqueeze (numbers, column)
    frequencies = Constant <value_floats = [{frequencies}]> ()
    changed = Mul (frequencies, speed)
    angles = Mul (place, changed)
    cos = Cos (angles)
    sin = Sin (angles)
    turned_q = truecast.Rotary <interleaved = {interleaved}, repeated = {repeated}, num_heads = 4,
        rotary_embedding_dim = {rotary_dim}> (q, cos, sin)
    turned_k = truecast.Rotary <interleaved = {key_interleaved}, repeated = {repeated}, num_heads = 2,
        rotary_embedding_dim = {rotary_dim}> (k, cos, sin)
    out, key, value = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2, scale = 0.3>
        (turned_q, turned_k, v, past_key, past_value, last, total)
}}
"""


def step(
    *, interleaved: int = 0, key_interleaved: int | None = None, repeated: int = 0, width: int = WIDTH, limit: int = 999
) -> ir.Model:
    """A step whose frequencies halve where a position beyond `limit` is met; tables as wide as `width`."""
    half = 10.0 ** -np.linspace(0, 2, width // 2)
    frequencies = np.repeat(half, 2) if repeated else np.tile(half, 2)
    text = GRAPH.format(
        limit=limit,
        frequencies=", ".join(f"{f:.6f}" for f in frequencies),
        interleaved=interleaved,
        key_interleaved=interleaved if key_interleaved is None else key_interleaved,
        repeated=repeated,
        rotary_dim=0 if width == WIDTH else width,
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    for value in ("cos", "sin"):
        next(v for node in model.graph for v in node.outputs if v.name == value).shape = ir.Shape(["B", "S", width])
    return model


def feeds(batch: int, new: int, past: int) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return numbers.normal(size=shape).astype(np.float32)

    return {
        "input_ids": np.zeros((batch, new), np.int64),
        "position_ids": np.tile(np.arange(past, past + new), (batch, 1)),
        "q": random(batch, new, HEADS * WIDTH),
        "k": random(batch, new, KV_HEADS * WIDTH),
        "v": random(batch, new, KV_HEADS * WIDTH),
        "past_key": random(batch, KV_HEADS, past, WIDTH),
        "past_value": random(batch, KV_HEADS, past, WIDTH),
        "last": np.full(batch, past + new - 1, np.int32),
        "total": np.array(past + new, np.int32),
    }


def run(model: ir.Model, tables: dict[str, np.ndarray], given: dict[str, np.ndarray]) -> list[np.ndarray]:
    expand(model)
    for name, table in tables.items():
        model.graph.initializers[name].const_value = ir.tensor(table, name=name)
    return run_graph(model, given)


@pytest.mark.parametrize(("batch", "new", "past"), [(2, NEW, 0), (1, NEW, PAST), (2, 1, PAST)])
@pytest.mark.parametrize("width", [WIDTH, WIDTH // 2])
@pytest.mark.parametrize(("interleaved", "repeated"), [(0, 0), (1, 0), (1, 1), (0, 1)])
def test_rotation_inside_attention_gives_the_same_numbers(
    interleaved: int, repeated: int, width: int, batch: int, new: int, past: int
) -> None:
    outside, inside = (step(interleaved=interleaved, repeated=repeated, width=width) for _ in range(2))
    tables = fuse_rotary(inside, POSITIONS)
    assert [table.shape for table in tables.values()] == [(POSITIONS, width // 2)] * 2
    assert not any(node.op_type == "Rotary" for node in inside.graph)
    given = feeds(batch, new, past)
    for got, expected in zip(run(inside, tables, given), run(outside, {}, given), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("limit", [1, 3, 6, 11, 13, POSITIONS - 2])
def test_frequencies_that_depend_on_the_length_stay_outside(limit: int) -> None:
    model = step(limit=limit)
    assert fuse_rotary(model, POSITIONS) == {}
    assert sum(node.op_type == "Rotary" for node in model.graph) == 2


def test_queries_and_keys_that_turn_differently_stay_outside() -> None:
    assert fuse_rotary(step(interleaved=0, key_interleaved=1), POSITIONS) == {}


def test_a_width_that_the_operator_does_not_take_stays_outside() -> None:
    assert fuse_rotary(step(width=8), POSITIONS) == {}


def test_layers_that_rotate_alike_share_one_table() -> None:
    model = step()
    attention = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    twin = ir.node(
        attention.op_type,
        attention.inputs,
        attention.attributes,
        domain=attention.domain,
        outputs=[ir.Value() for _ in attention.outputs],
    )
    model.graph.append(twin)
    assert len(fuse_rotary(model, POSITIONS)) == 2
    assert list(twin.inputs[7:9]) == list(attention.inputs[7:9])


PACKED = """
<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
step (float[B, S, 256] qkv, float[B, 2, P, 32] past_key, float[B, 2, P, 32] past_value, int32[B] last, int32 total)
     => (float[B, S, 128] out, float[B, 2, T, 32] key, float[B, 2, T, 32] value)
{
    sizes = Constant <value_ints = [128, 64, 64]> ()
    q, k, v = Split <axis = -1> (qkv, sizes)
    out, key, value = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2>
        (ORDER, past_key, past_value, last, total)
}
"""


def packed(order: str) -> list[str]:
    """The first three inputs of attention after `pack_heads`."""
    model = ir.from_proto(onnx.parser.parse_model(PACKED.replace("ORDER", order)))
    pack_heads(model)
    attention = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    return [value.name if value else "" for value in attention.inputs[:3]]


def test_attention_reads_a_whole_product_instead_of_its_parts() -> None:
    assert packed("q, k, v") == ["qkv", "", ""]


@pytest.mark.parametrize("order", ["q, v, k", "q, k, k"])
def test_parts_in_another_order_stay_parts(order: str) -> None:
    assert packed(order) == order.split(", ")
