"""Rotation is recognised in every arrangement of pairs and tables, and the operator rotates alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.models.cohere import modeling_cohere
from transformers.models.glm import modeling_glm
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.llama import modeling_llama
from transformers.models.nanochat import modeling_nanochat

from truecast.dialects.model import RotaryForm
from truecast.dialects.ort.rotary import RotaryEmbedding

Pair = tuple[Tensor, Tensor]
Rotary = Callable[..., Pair]
HEAD, BATCH, SEQUENCE = 8, 3, 5


def half_turn(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def neighbour_turn(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)


def rotary(turn: Callable[[Tensor], Tensor], *, first: bool = True, sign: int = 1) -> Rotary:
    """A rotary function for tables narrower than or as wide as a head: turns the first or the last part."""

    def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Pair:
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        width = cos.shape[-1]

        def one(x: Tensor) -> Tensor:
            if not first:
                x = x.flip(-1)
            part = x[..., :width] * cos + sign * turn(x[..., :width]) * sin
            whole = torch.cat((part, x[..., width:]), -1)
            return whole if first else whole.flip(-1)

        return one(q), one(k)

    return apply


HALVES = RotaryForm(interleaved=False, repeated=False, head_axis=1)
FORMS: dict[str, tuple[Rotary, RotaryForm]] = {
    "halves": (rotary(half_turn), HALVES),
    "neighbours, every angle twice in a row": (rotary(neighbour_turn), RotaryForm(True, True, 1)),
    "llama": (modeling_llama.apply_rotary_pos_emb, RotaryForm(False, False, 1, partial=False)),
    "gpt_neox": (modeling_gpt_neox.apply_rotary_pos_emb, HALVES),
    "glm": (modeling_glm.apply_rotary_pos_emb, RotaryForm(True, False, 1)),
    "gpt_oss": (modeling_gpt_oss.apply_rotary_pos_emb, RotaryForm(False, False, 1, partial=False, once=True)),
    "cohere": (modeling_cohere.apply_rotary_pos_emb, RotaryForm(True, True, 1, partial=False)),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_rotation_is_recognised_with_its_form(name: str) -> None:
    function, form = FORMS[name]
    assert RotaryEmbedding().recognise(function, 1) == form


@pytest.mark.usefixtures("in_onnxruntime")
@pytest.mark.parametrize("head_axis", [1, 2])
@pytest.mark.parametrize("width", [HEAD, HEAD - 4])
@pytest.mark.parametrize("turn", [half_turn, neighbour_turn])
def test_the_operator_rotates_as_the_author(turn: Callable[[Tensor], Tensor], width: int, head_axis: int) -> None:
    function = rotary(turn)
    form = RotaryEmbedding().recognise(function, head_axis)
    assert form is not None
    assert form.head_axis == head_axis
    angles = torch.randn(BATCH, SEQUENCE, width // 2)
    angles = angles.repeat_interleave(2, -1) if form.repeated else torch.cat((angles, angles), -1)
    states = torch.randn(BATCH, SEQUENCE, 2, HEAD) if head_axis == 2 else torch.randn(BATCH, 2, SEQUENCE, HEAD)
    expected, _ = function(states, states, angles.cos(), angles.sin(), head_axis)
    got = RotaryEmbedding().emit(form, states, angles.cos(), angles.sin())
    torch.testing.assert_close(got, expected)


@pytest.mark.usefixtures("in_onnxruntime")
def test_tables_with_every_angle_once_are_doubled_for_the_operator() -> None:
    function, form = FORMS["gpt_oss"]
    angles, states = torch.randn(BATCH, SEQUENCE, HEAD // 2), torch.randn(BATCH, 2, SEQUENCE, HEAD)
    assert form.width(angles) == HEAD
    expected, _ = function(states, states, angles.cos(), angles.sin())
    got = RotaryEmbedding().emit(form, states, angles.cos(), angles.sin())
    torch.testing.assert_close(got, expected)


def without_sine(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Pair:
    return q * cos.unsqueeze(unsqueeze_dim), k * cos.unsqueeze(unsqueeze_dim)


def only_the_query(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Pair:
    return rotary(half_turn)(q, k, cos, sin, unsqueeze_dim)[0], k


def scaled(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Pair:
    q, k = rotary(half_turn)(q, k, cos, sin, unsqueeze_dim)
    return 1.01 * q, k


@pytest.mark.parametrize(
    "function",
    [
        modeling_nanochat.apply_rotary_pos_emb,
        rotary(half_turn, sign=-1),
        rotary(neighbour_turn, sign=-1),
        without_sine,
        only_the_query,
        scaled,
    ],
)
def test_anything_else_is_no_rotation(function: Rotary) -> None:
    assert RotaryEmbedding().recognise(function, 1) is None


def test_a_function_without_a_head_axis_argument_is_not_asked_for_another_axis() -> None:
    def fixed(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
        return rotary(half_turn)(q, k, cos, sin, 1)

    assert RotaryEmbedding().recognise(fixed, 1) is not None
    assert RotaryEmbedding().recognise(fixed, 2) is None


def test_a_rotation_of_the_last_part_of_a_head_is_not_taken_for_one_of_the_first() -> None:
    def last(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Pair:
        width = cos.shape[-1]
        turned = rotary(half_turn)(q[..., -width:], k[..., -width:], cos, sin, unsqueeze_dim)
        q, k = (torch.cat((x[..., :-width], y), -1) for x, y in zip((q, k), turned, strict=True))
        return q, k

    form = RotaryEmbedding().recognise(last, 1)
    assert form is not None
    assert not form.partial
