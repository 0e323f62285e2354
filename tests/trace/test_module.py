"""The trace of a module without a cache: which axes stay free and how far, what they are called, what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import truecast
from truecast.artifact import Status
from truecast.dialects import dialect
from truecast.errors import InputError
from truecast.trace.author import Axis, InputSpec
from truecast.trace.module import ModuleTrace, require_ranges, roomy, shared_names, trace_module
from truecast.trace.opening import ModuleSource, open_author
from truecast.trace.torchscript import trace_torchscript


class Base(nn.Module):
    """A product, so that there is a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)


class Straight(Base):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.linear(x)
        return {"y": y, "mean": y.mean(1), "pairs": torch.cat([y, y], 1)}


class Branching(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * 2 if x.shape[1] > 10 else self.linear(x)


class Undecided(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else -x


class Fixed(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).reshape(-1, 5, 4, 2)


class Summed(Base):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.linear(x) + y


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("offset", torch.arange(8.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x) + self.offset))


X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))


def trace(
    module: nn.Module, dynamic: dict[str, dict[int, str]] | None, example: Any = X, opset: int = 21
) -> ModuleTrace:
    author, _ = open_author(ModuleSource(module=module, example_inputs=example, dynamic=dynamic))
    return trace_module(author, dialect("ort", opset))


def refusal(module: nn.Module, dynamic: dict[str, dict[int, str]] | None, example: Any = X) -> str:
    with pytest.raises(InputError) as refused:
        trace(module, dynamic, example)
    return str(refused.value)


def shape(value: ir.Value) -> list[int | str]:
    assert value.shape is not None
    return [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]


def test_examples_of_size_1_are_repeated_where_the_axis_is_free() -> None:
    specs = [InputSpec("x", torch.arange(3.0)[None], {0: Axis("b")}), InputSpec("y", torch.zeros(1, 1), {})]
    x, y = roomy(specs)
    assert x.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert y.shape == (1, 1)


def test_an_axis_of_one_size_is_refused() -> None:
    assert (
        refusal(Straight(), {"x": {1: "length=1..1"}}) == "The axis length=1..1 of x has one size only; leave it out."
    )


def test_inputs_outputs_and_axes_carry_the_names_asked_for() -> None:
    found = trace(Straight(), {"x": {0: "rows", 1: "length=1..512"}})
    graph = found.model.graph
    assert {value.name: shape(value) for value in graph.inputs} == {"x": ["rows", "length", 8]}
    assert {value.name: shape(value) for value in graph.outputs} == {
        "y": ["rows", "length", 8],
        "mean": ["rows", 8],
        "pairs": ["rows", "2*length", 8],
    }
    assert found.axes == {"rows": Axis("rows"), "length": Axis("length", 1, 512)}
    assert found.lowered["linear"] == 1


def test_an_example_of_one_row_leaves_the_batch_free() -> None:
    graph = trace(Straight(), None, X[:1]).model.graph
    assert shape(graph.inputs[0]) == ["batch_size", 5, 8]


@pytest.mark.parametrize("opset", [18, 23])
def test_the_graph_has_the_opset_asked_for(opset: int) -> None:
    assert trace(Straight(), None, opset=opset).model.opset_imports[""] == opset


def test_a_branch_on_the_size_is_refused_with_the_range_that_is_the_same() -> None:
    assert refusal(Branching(), {"x": {1: "length"}}) == (
        "The model does something else beyond the sizes 2..10 of axis 1 of x (length); "
        "ask for these, as length=2..10, or change its code."
    )
    assert trace(Branching(), {"x": {1: "length=2..10"}}).axes["length"].high == 10
    assert "length=2..10" in refusal(Branching(), {"x": {1: "length=2..11"}})


def test_the_other_side_of_a_branch_is_taken_with_its_own_example() -> None:
    long = torch.zeros(2, 12, 8)
    assert "sizes 11.." in refusal(Branching(), {"x": {1: "length"}}, long)
    assert trace(Branching(), {"x": {1: "length=11.."}}, long).axes["length"].low == 11


def test_a_branch_on_values_is_refused() -> None:
    message = refusal(Undecided(), None)
    assert message.startswith("Undecided cannot be traced: ")
    assert len(message.splitlines()) == 1


def test_an_axis_that_the_model_fixes_is_refused() -> None:
    assert refusal(Fixed(), {"x": {0: "batch", 1: "length"}}).startswith(
        "The model fixes axis 1 of x (length) at 5; it cannot be cast with that axis free."
    )
    assert shape(trace(Fixed(), {"x": {0: "batch"}}).model.graph.inputs[0]) == ["batch", 5, 8]


def test_an_axis_that_takes_only_multiples_is_refused() -> None:
    """A stand-in for torch.export's program: whether it writes such sizes or checks them later is its own choice."""
    author, _ = open_author(ModuleSource(module=Straight(), example_inputs=X, dynamic={"x": {1: "length"}}))
    node = SimpleNamespace(op="placeholder", name="x", meta={"val": SimpleNamespace(shape=(2, "2*s0", 8))})
    program: Any = SimpleNamespace(
        range_constraints={},
        graph_signature=SimpleNamespace(user_inputs=["x"]),
        graph=SimpleNamespace(nodes=[node]),
    )
    with pytest.raises(InputError) as refused:
        require_ranges(program, author)
    assert str(refused.value) == (
        "The model takes only sizes of the form 2*s0 for axis 1 of x (length); leave it fixed."
    )


def test_axes_that_the_model_ties_need_one_name() -> None:
    message = refusal(Summed(), {"x": {1: "length"}, "y": {1: "other"}}, (X, X.clone()))
    assert (
        message == "The model takes one size only for axis 1 of x (length) and axis 1 of y (other); give them one name."
    )


def test_a_shared_weight_has_one_name_and_a_buffer_its_values() -> None:
    module = Shared()
    assert shared_names(module) == {"second.weight": "first.weight"}
    found = trace(module, None)
    assert found.tied == {"second.weight": "first.weight"}
    assert found.buffers["offset"].tolist() == list(range(8))
    assert set(found.parameters) >= {"first.weight"}


def test_the_trace_leaves_the_module_as_it_was() -> None:
    module = Straight()
    before = module.linear.forward
    trace(module, None)
    assert module.linear.forward == before
    assert module.training


def test_a_leaf_may_be_the_whole_model_or_be_called_by_name() -> None:
    class Named(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(input=x)

    for module in (nn.Linear(8, 8), Named()):
        assert trace(module, None).lowered["linear"] == 1


def test_the_width_of_a_product_is_no_free_axis() -> None:
    assert refusal(nn.Linear(8, 8), {"input": {2: "width"}}).startswith("The model fixes axis 2 of input (width) at 8;")


class Twice(nn.Module):
    """Takes y [batch, 2·length, 8] for x [batch, length, 8]."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, x], 1) + y


class Longer(nn.Module):
    """Takes y [batch, length + 1, 8]."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, x[:, :1]], 1) * y


RELATED = {"2*length": (Twice(), torch.randn(2, 10, 8)), "length+1": (Longer(), torch.randn(2, 6, 8))}


@pytest.mark.parametrize("relation", RELATED)
def test_an_axis_that_follows_from_another_is_named_with_the_way_to_ask(relation: str) -> None:
    module, y = RELATED[relation]
    for asked in ("other", "other=4..", "3*length"):
        assert refusal(module, {"x": {1: "length"}, "y": {1: asked}}, (torch.randn(2, 5, 8), y)) == (
            f"The model takes only the size {relation} for axis 1 of y ({asked.partition('=')[0]}), "
            f"where length is axis 1 of x; ask for that, as y.1={relation}."
        )


@pytest.mark.parametrize("relation", RELATED)
def test_an_axis_that_follows_from_another_is_proven(relation: str, tmp_path: Path) -> None:
    module, y = RELATED[relation]
    dynamic = {"x": {0: "batch", 1: "length"}, "y": {0: "batch", 1: relation}}
    made = truecast.export(module, tmp_path / "out", example_inputs=(torch.randn(2, 5, 8), y), dynamic=dynamic)
    graph = made.manifest.graph
    assert [info.shape for info in (*graph.inputs, *graph.outputs)] == [
        ["batch", "length", 8],
        ["batch", relation, 8],
        ["batch", relation, 8],
    ]
    assert list(graph.axes) == ["batch", "length"]
    certificate = made.manifest.certificate
    assert (certificate.status, certificate.notes) == (Status.PROVEN, [])
    again = made.verify(module, example_inputs=(torch.randn(2, 5, 8), y))
    assert (again.status, again.notes) == (Status.PROVEN, [])


def test_a_relation_needs_its_axis_and_the_default_exporter(tmp_path: Path) -> None:
    module, y = RELATED["2*length"]
    examples = (torch.randn(2, 5, 8), y)
    with pytest.raises(InputError, match=r"^The axis 2\*length follows from length, but no axis is called so"):
        open_author(ModuleSource(module=module, example_inputs=examples, dynamic={"y": {1: "2*length"}}))
    with pytest.raises(InputError, match=r"^The axis 2\*length follows from another, which needs the exporter dynamo"):
        options = {"dynamic": {"x": {1: "length"}, "y": {1: "2*length"}}, "exporter": "torchscript"}
        truecast.export(module, tmp_path / "out", example_inputs=examples, **options)


class Passing(Base):
    """Gives an input and a result twice, and a result under an input's name."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.linear(x)
        return {"y": y, "same": x, "again": y, "twice": x, "x": y + 1}


@pytest.mark.parametrize("module", [Passing(), nn.Identity()], ids=["several", "nothing else"])
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_outputs_that_are_inputs_keep_both_names(module: nn.Module, exporter: str) -> None:
    author, _ = open_author(ModuleSource(module=module, example_inputs=X))
    traced = trace_module(author, dialect("ort")) if exporter == "dynamo" else trace_torchscript(author, 20)
    graph = traced.model.graph
    assert [value.name for value in graph.inputs] == [author.inputs[0].name]
    assert [value.name for value in graph.outputs] == list(author([X]))
    assert len({id(value) for value in (*graph.inputs, *graph.outputs)}) == len(graph.outputs) + 1


def test_an_output_with_the_name_of_an_input_gets_another() -> None:
    author, _ = open_author(ModuleSource(module=Passing(), example_inputs=X))
    assert list(author([X])) == ["y", "same", "again", "twice", "x_output"]


class Choosing(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: self.linear(x), lambda x: x * 2, (x,))  # type: ignore[no-any-return]


def test_a_choice_between_two_graphs_is_traced() -> None:
    assert "If" in {node.op_type for node in trace(Choosing(), None).model.graph}


class Registers(Base):
    """Has tokens of its own, and here none of them, as DINOv3 may."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(1, 0, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.cat([self.tokens.expand(x.shape[0], -1, -1), x], 1))


def test_a_weight_may_be_empty(tmp_path: Path) -> None:
    made = truecast.export(Registers(), tmp_path / "out", example_inputs=X)
    assert made.manifest.certificate.status is Status.PROVEN


class Hiding(Base):
    """Hides what a mask of integers says, as XLNet does."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.linear(x) * (1.0 - mask)[..., None]


def test_integers_are_taken_from_a_float(tmp_path: Path) -> None:
    made = truecast.export(Hiding(), tmp_path / "out", example_inputs=(X, torch.ones(X.shape[:2], dtype=torch.long)))
    assert made.manifest.certificate.status is Status.PROVEN


def test_the_other_exporter_is_named_for_layers_that_torch_export_unrolls() -> None:
    said = refusal(nn.GRU(8, 4, batch_first=True), {"input": {0: "batch", 1: "length"}})
    assert said.endswith("The exporter unrolls nn.GRU; pass --exporter torchscript, which keeps it whole.")


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool1d(3), nn.AdaptiveMaxPool1d(2)])
def test_a_free_axis_that_is_divided_into_parts_is_refused(pool: nn.Module) -> None:
    axes = {"input": {0: "batch", 2: "width=8..64"}}
    assert "divides a free axis into parts (adaptive_" in refusal(pool, axes, torch.randn(2, 3, 12))


def test_a_free_axis_may_be_pooled_to_one() -> None:
    assert trace(nn.AdaptiveAvgPool1d(1), {"input": {0: "batch", 2: "width"}}, torch.randn(2, 3, 12)).axes


class Wide(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).double().cumsum(1)


def test_float64_is_refused_by_the_operator_that_computes_in_it() -> None:
    assert refusal(Wide(), None).startswith("Wide computes in float64 (Cast, 2 operators in all), ")
