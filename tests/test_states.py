"""The names of states among a graph's ports."""

from __future__ import annotations

import pytest

from truecast.states import NAMES, PARTS, State, StateTensor, is_past


@pytest.mark.parametrize("part", NAMES)
def test_a_name_says_which_tensor_it_is(part: str) -> None:
    tensor = StateTensor(11, part)
    assert StateTensor.named(tensor.past) == StateTensor.named(tensor.present) == tensor
    assert NAMES[part] == (tensor.past.replace("11", "%d"), tensor.present.replace("11", "%d"))
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


@pytest.mark.parametrize(
    ("sizes", "grows", "shape"),
    [((2, None, 8), True, ["batch", 2, "length", 8]), ((64, 4), False, ["batch", 64, 4])],
)
def test_a_state_grows_with_every_position_or_keeps_its_size(
    sizes: tuple[int | None, ...], grows: bool, shape: list[int | str]
) -> None:
    state = State(0, "key" if grows else "conv", sizes, "float32")
    assert (state.grows, state.shape("batch", "length")) == (grows, shape)
