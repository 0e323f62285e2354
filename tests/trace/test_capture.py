"""From a module under fake tensors to a graph: what is a weight, what is a constant, what must stay free."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from truecast.errors import InputError
from truecast.states import PARTS, State
from truecast.trace.capture import capture, past_of
from truecast.trace.skeleton import fake_tensors

HEADS, WIDTH = 2, 8
STATES = [State(0, part, (HEADS, None, WIDTH), "float32") for part in PARTS]
TABLE = torch.tensor([0.5, 0.25])


class Step(nn.Module):
    """One step of a decoder with one cached layer; `logits` says what it gives."""

    def __init__(self, logits: Callable[[Step, Tensor], Tensor]) -> None:
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.weight = nn.Parameter(torch.tensor([2.0]))
        self.decoder.register_buffer("scale", torch.tensor(3.0), persistent=False)
        self.logits = logits

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past_probe: Tensor) -> Any:
        key, value = past_of(STATES, past_probe, input_ids.shape[0])
        return self.logits(self, input_ids), [key + past_probe.shape[0], value * attention_mask.shape[1]]


def captured(logits: Callable[[Step, Tensor], Tensor]) -> ir.Model:
    with fake_tensors():
        step = Step(logits)
    return capture(step, lambda: [state.present for state in STATES], 21)


@pytest.fixture(scope="module")
def graph() -> ir.Graph:
    return captured(lambda self, ids: (ids[..., None] * self.decoder.weight * self.decoder.scale) * TABLE).graph


def test_weights_and_buffers_are_left_to_be_bound(graph: ir.Graph) -> None:
    assert {name for name, value in graph.initializers.items() if value.const_value is None} == {"weight", "scale"}


def test_a_constant_of_the_authors_code_keeps_its_values(graph: ir.Graph) -> None:
    constants = [v.const_value for v in graph.initializers.values() if v.const_value is not None]
    constants += [node.attributes["value"].as_tensor() for node in graph if "value" in node.attributes]
    assert any(tensor.numpy().tolist() == TABLE.tolist() for tensor in constants)


def test_pasts_are_inputs_and_presents_are_outputs(graph: ir.Graph) -> None:
    assert [value.name for value in graph.inputs] == [
        "input_ids",
        "attention_mask",
        "position_ids",
        "past_key_values.0.key",
        "past_key_values.0.value",
    ]
    assert [value.name for value in graph.outputs] == ["logits", "present.0.key", "present.0.value"]


def test_the_length_of_the_past_is_measured_on_the_past(graph: ir.Graph) -> None:
    readers = {node.inputs[0].name for node in graph if node.op_type == "Shape" and node.inputs[0] is not None}
    assert "past_key_values.0.value" in readers
    assert not any("Past" in node.op_type for node in graph)


def fixed_length(self: Step, ids: Tensor) -> Tensor:
    return ids[..., None] * self.decoder.weight * torch.ones(17, 1)


@pytest.mark.parametrize(("least", "refused"), [(20, True), (1, False)])
def test_a_branch_on_all_tokens_is_refused_unless_every_length_takes_it(least: int, refused: bool) -> None:
    class Branching(Step):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past_probe: Tensor) -> Any:
            _, present = super().forward(input_ids, attention_mask, position_ids, past_probe)
            scores = present[0].sum((1, 3))[:, None].expand(-1, input_ids.shape[1], -1)
            total = input_ids.shape[1] + past_probe.shape[0]
            wide = torch.cat([scores, input_ids[:, None].expand(-1, input_ids.shape[1], -1)], -1)
            return (wide.topk(least).values if total > least else wide), present

    with fake_tensors():
        step = Branching(lambda self, ids: ids * self.decoder.weight)
    with pytest.raises(InputError, match=r"unless past \+ new > 20") if refused else nullcontext():
        capture(step, lambda: [state.present for state in STATES], 21)


def longest(self: Step, ids: Tensor) -> Tensor:
    torch._check(ids.shape[1] <= 512)
    return ids[..., None] * self.decoder.weight


@pytest.mark.parametrize("logits", [fixed_length, longest])
def test_an_axis_that_the_model_fixes_or_bounds_is_refused(logits: Callable[[Step, Tensor], Tensor]) -> None:
    with pytest.raises(InputError, match="fixes axis 1 of input_ids"):
        captured(logits)


@pytest.mark.parametrize(("positions", "refused"), [(514, False), (515, True)])
def test_a_bound_at_the_end_of_the_positions_is_none(positions: int, refused: bool) -> None:
    with fake_tensors():
        step = Step(longest)
    with pytest.raises(InputError, match="at 512 at most") if refused else nullcontext():
        capture(step, lambda: [state.present for state in STATES], 21, positions)


def many_rows(self: Step, ids: Tensor) -> Tensor:
    torch._check(ids.shape[0] <= 512)
    return ids[..., None] * self.decoder.weight


def test_a_bound_of_the_rows_is_refused_whatever_the_positions() -> None:
    with fake_tensors():
        step = Step(many_rows)
    with pytest.raises(InputError, match="fixes axis 0 of input_ids at 512 at most"):
        capture(step, lambda: [state.present for state in STATES], 21, 100)
