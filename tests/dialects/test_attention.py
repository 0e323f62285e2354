"""GroupQueryAttention: the formula that authors are compared with is the one that ONNX Runtime computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.dialects.running import run_operator
from truecast.dialects.model import AttentionCall
from truecast.dialects.ort.attention import GroupQueryAttention

HEADS, KV_HEADS, WIDTH, NEW, PAST = 4, 2, 8, 3, 5
TOTAL = PAST + NEW
HIDDEN_BIAS = -1e30


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) * sum(shape)))


def attention_call(batch: int = 1, new: int = NEW, **changes: object) -> AttentionCall:
    """Several tokens of one row, or one token of each row: the operator takes no more after a past."""
    call = AttentionCall(
        query=random(batch, HEADS, new, WIDTH),
        key=random(batch, KV_HEADS, new, WIDTH),
        value=random(batch, KV_HEADS, new, WIDTH) + 1,
        past_key=random(batch, KV_HEADS, TOTAL - new, WIDTH),
        past_value=random(batch, KV_HEADS, TOTAL - new, WIDTH) - 1,
        last_position=torch.full((batch,), TOTAL - 1, dtype=torch.int32),
        total_length=torch.tensor(TOTAL, dtype=torch.int32),
        bias=None,
        total=TOTAL,
        scale=0.7,
        window=None,
        softcap=0.0,
        sinks=None,
    )
    return replace(call, **changes)  # type: ignore[arg-type]


def hidden_by(window: int | None, new: int = NEW) -> Tensor:
    """The additive mask of a causal window, [1, 1, new, TOTAL]."""
    queries, keys = torch.arange(TOTAL - new, TOTAL)[:, None], torch.arange(TOTAL)
    seen = (keys <= queries) & (keys > queries - (window or TOTAL))
    return torch.where(seen, 0.0, HIDDEN_BIAS)[None, None]


def expected(call: AttentionCall, mask: Tensor) -> Tensor:
    """The reference over past and new keys, [batch, sequence, heads, width]."""
    key, value = torch.cat((call.past_key, call.key), 2), torch.cat((call.past_value, call.value), 2)
    output = GroupQueryAttention().reference(call.query, key, value, mask, call.scale, call.softcap, call.sinks)
    return output.transpose(1, 2)


@pytest.mark.usefixtures("in_onnxruntime")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scale": 0.1},
        {"window": 1},
        {"window": 3},
        {"window": TOTAL},
        {"softcap": 0.5},
        {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])},
        {"window": 2, "softcap": 1.5},
    ],
)
def test_the_reference_is_what_the_operator_computes(changes: dict[str, object]) -> None:
    call = attention_call(**changes)
    output, present_key, present_value = GroupQueryAttention().emit(call)
    torch.testing.assert_close(output, expected(call, hidden_by(call.window)))
    assert torch.equal(present_key, torch.cat((call.past_key, call.key), 2))
    assert torch.equal(present_value, torch.cat((call.past_value, call.value), 2))


@pytest.mark.usefixtures("in_onnxruntime")
@pytest.mark.parametrize(
    ("new", "mask"),
    [
        (NEW, [[0, 0, 1, 1, 0, 1, 1, 1]]),
        (1, [[0, 0, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]]),
        (1, [[1, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 1]]),
    ],
)
def test_the_contracts_bias_hides_what_the_mask_hides(new: int, mask: list[list[int]]) -> None:
    ids, dtypes = torch.zeros(len(mask), new, dtype=torch.long), [torch.int32, torch.int32, torch.float32]
    last, total, bias = run_operator("truecast::Contract", [torch.tensor(mask), ids], {"padding": "any"}, dtypes)
    call = attention_call(len(mask), new, last_position=last, total_length=total, bias=bias)
    hidden = torch.where(torch.tensor(mask) == 1, 0.0, HIDDEN_BIAS)[:, None, None]
    torch.testing.assert_close(GroupQueryAttention().emit(call)[0], expected(call, hidden + hidden_by(None, new)))


def test_the_contract_of_right_padding_is_each_rows_last_real_position() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    ids = torch.zeros(2, 2, dtype=torch.long)
    last, total = run_operator("truecast::Contract", [mask, ids], {"padding": "right"}, [torch.int32, torch.int32])
    assert last.tolist() == [2, 4]
    assert int(total) == 5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"value": random(1, KV_HEADS, NEW, 16)}, "values of width 16"),
        ({"query": random(1, 3, NEW, WIDTH)}, "3 query heads cannot share 2 key heads"),
        ({"query": random(1, 4, 1, 12), "value": random(1, 2, 1, 12)}, "12 is not a multiple of 8"),
    ],
)
def test_what_the_operator_cannot_do_has_a_reason(changes: dict[str, object], reason: str) -> None:
    assert reason in (GroupQueryAttention().supports(attention_call(**changes)) or "")


def test_plain_grouped_attention_is_supported() -> None:
    assert GroupQueryAttention().supports(attention_call()) is None
