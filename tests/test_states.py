"""The names of states among a graph's ports."""

from __future__ import annotations

import pytest

from truecast.states import PARTS, StateTensor, is_past, patterns


@pytest.mark.parametrize("part", PARTS)
def test_a_name_says_which_tensor_it_is(part: str) -> None:
    tensor = StateTensor(11, part)
    assert StateTensor.named(tensor.past) == StateTensor.named(tensor.present) == tensor
    assert patterns(part) == (tensor.past.replace("11", "%d"), tensor.present.replace("11", "%d"))
    assert is_past(tensor.past) and not is_past(tensor.present)


@pytest.mark.parametrize("port", ["input_ids", "logits", "past_key_values.1.scale", "present.key", "", None])
def test_other_ports_are_no_states(port: str | None) -> None:
    assert StateTensor.named(port) is None


def test_states_are_in_the_order_of_layers() -> None:
    tensors = [StateTensor(layer, part) for layer in (10, 9) for part in reversed(PARTS)]
    assert [tensor.past for tensor in sorted(tensors)] == [
        "past_key_values.9.key",
        "past_key_values.9.value",
        "past_key_values.10.key",
        "past_key_values.10.value",
    ]
