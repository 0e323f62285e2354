"""The author's module and how it is called: axes, examples, names of inputs and outputs, and what is refused."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from truecast.errors import InputError
from truecast.trace.author import Axis, in_memory, outputs_of, try_call


class Scaled(nn.Module):
    """Two inputs of one batch, in the order x, by."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, by: Tensor) -> Tensor:
        return self.dropout(self.linear(x)) * by


X, BY = torch.arange(48.0).reshape(2, 3, 8), torch.ones(2, 1, 1)


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("length", Axis("length")),
        ("length=1..512", Axis("length", 1, 512)),
        ("length=16..", Axis("length", 16)),
        ("batch_size=3..3", Axis("batch_size", 3, 3)),
    ],
)
def test_an_axis_is_read_and_written_in_one_form(text: str, axis: Axis) -> None:
    assert Axis.parse(text) == axis
    assert str(axis) == text


@pytest.mark.parametrize("text", ["", "1", "a b", "a=", "a=5", "a=..5", "a=x..y", "a=1..2..3", "a=-1..5", "=1..2"])
def test_what_is_no_axis_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(
        InputError, match=r"is no axis; write a name, or a name with its sizes, as sequence_length=1\.\."
    ):
        Axis.parse(text)


@pytest.mark.parametrize("text", ["a=0..5", "a=5..4"])
def test_an_axis_without_a_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"has no size; write the smallest and the largest, as a=1\.\.512"):
        Axis.parse(text)


Pair = namedtuple("Pair", "first second")
A, B, C = torch.zeros(1), torch.ones(2), torch.ones(3)


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (A, ["output"]),
        ((A, B), ["output_0", "output_1"]),
        ([A], ["output_0"]),
        (Pair(A, B), ["first", "second"]),
        ({"y": A, "z": B}, ["y", "z"]),
        (BaseModelOutput(last_hidden_state=A), ["last_hidden_state"]),
        (BaseModelOutput(last_hidden_state=A, hidden_states=(B,)), ["last_hidden_state", "hidden_states.0"]),
        ({"heads": {"topic": A, "mood": B}, "loss": None, "n": 3}, ["heads.topic", "heads.mood"]),
        ((A, (B, C)), ["output_0", "output_1.0", "output_1.1"]),
        (None, []),
        ("text", []),
        (3, []),
    ],
)  # fmt: skip
def test_outputs_carry_the_authors_names(result: Any, names: list[str]) -> None:
    assert list(outputs_of(result)) == names


def test_values_stay_with_their_names() -> None:
    found = outputs_of(OrderedDict(b=B, a=(A, C)))
    assert [tensor.shape[0] for tensor in found.values()] == [2, 1, 3]


@pytest.mark.parametrize("examples", [(X, BY), [X, BY], {"by": BY, "x": X}])
def test_examples_are_taken_by_place_or_name(examples: Any) -> None:
    author = in_memory(Scaled(), examples)
    assert [spec.name for spec in author.inputs] == ["x", "by"]
    assert [spec.axes for spec in author.inputs] == [{0: Axis("batch_size")}] * 2
    assert author([X, BY])["output"].shape == (2, 3, 4)


def test_one_tensor_is_the_first_input() -> None:
    assert [spec.name for spec in in_memory(nn.Linear(8, 4), X).inputs] == ["input"]


def test_the_first_axis_is_fixed_where_sizes_differ() -> None:
    assert all(not spec.axes for spec in in_memory(Scaled(), (X, torch.ones(1, 1, 1))).inputs)
    assert all(not spec.axes for spec in in_memory(Scaled(), (X, torch.tensor(2.0))).inputs)


def test_the_users_module_stays_as_it_is() -> None:
    module = Scaled().train()
    weight, example = module.linear.weight.detach().clone(), X.clone()
    author = in_memory(module, (example, BY))
    with torch.no_grad():
        author.module.linear.weight.zero_()  # type: ignore[union-attr]
        author.inputs[0].example.zero_()
    assert module.training and module.dropout.training
    assert not author.module.training
    assert torch.equal(module.linear.weight, weight)
    assert torch.equal(example, X)


def test_integers_stay_within_those_of_the_example() -> None:
    ids = torch.tensor([[3, 9, 0]])
    assert in_memory(nn.Embedding(10, 4), ids).inputs[0].high == 10
    assert in_memory(Scaled(), (X, BY)).inputs[0].high is None


def test_free_axes_are_those_asked_for() -> None:
    author = in_memory(Scaled(), (X, BY)).with_axes({"x": {1: "length=1..9"}})
    assert [dict(spec.axes) for spec in author.inputs] == [{1: Axis("length", 1, 9)}, {}]
    assert author.axes == {"length": Axis("length", 1, 9)}
    assert author.with_axes(None) is author


@pytest.mark.parametrize(
    ("dynamic", "sentence"),
    [
        ({"y": {0: "b"}}, "There is no input 'y' to free an axis of; there are x, by."),
        ({"x": {3: "b"}}, "x has the axes 0 to 2; [3] cannot be freed."),
        ({"x": {-1: "b"}}, "x has the axes 0 to 2; [-1] cannot be freed."),
        ({"x": {0: "b c"}}, "'b c' is no axis; "),
    ],
)
def test_an_axis_that_is_not_there_is_refused(dynamic: dict[str, dict[int, str]], sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        in_memory(Scaled(), (X, BY)).with_axes(dynamic)
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize(
    ("examples", "sentence"),
    [
        ({"x": X, "b": BY}, "Scaled takes no input 'b'; it takes x, by."),
        ((X, BY, BY), "Scaled takes 2 inputs, but there are 3 examples; give one for each input."),
        (3, "example_inputs must be a tensor, a sequence of tensors, or a mapping of names to tensors."),
        ("x", "The example of x is no tensor; give one tensor for every input."),
        ((), "The example of an input is no tensor; give one tensor for every input."),
        ((X, 1.0), "The example of by is no tensor; give one tensor for every input."),
    ],
)
def test_examples_that_are_none_are_refused(examples: Any, sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        in_memory(Scaled(), examples)
    assert str(refused.value) == sentence


def test_an_example_that_the_module_rejects_is_named_with_its_shape() -> None:
    with pytest.raises(
        InputError,
        match=r"Scaled does not take the inputs x \[2, 3, 7\], by \[2, 1, 1\]: Scaled\.forward .* \(mat1 and mat2",
    ):
        in_memory(Scaled(), (X[..., :7], BY))


def test_an_example_too_few_is_named() -> None:
    with pytest.raises(InputError, match=r"Scaled does not take the inputs x \[2, 3, 8\]: .*'?by'?"):
        in_memory(Scaled(), X)


def test_a_module_without_tensors_to_give_is_refused() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> None:
            return None

    with pytest.raises(InputError, match="Silent returns no tensor; there is nothing to cast"):
        in_memory(Silent(), X)


def test_a_call_keeps_the_authors_names_and_adds_what_finish_makes() -> None:
    author = in_memory(Scaled(), (X, BY))
    assert list(try_call(author, [X, BY])) == ["output"]
