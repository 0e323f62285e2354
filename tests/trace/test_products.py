"""Products that an author writes out with a linear module's weight become the leaf; others stay."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from truecast.trace.capture import forget_weights, to_onnx
from truecast.trace.cleanup import clean
from truecast.trace.products import name_products

IN, OUT = 6, 4


class Writes(nn.Module):
    """Computes with the weight of a linear module that it never calls."""

    def __init__(self, compute: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.other, self.compute = nn.Linear(IN, OUT), nn.Parameter(torch.ones(OUT, IN)), compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def graph_of(compute: Callable[..., Tensor]) -> ir.Graph:
    module = Writes(compute).eval()
    shapes = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    program = torch.export.export(module, (torch.ones(3, 5, IN),), dynamic_shapes=shapes)
    model = to_onnx(program, ["x"], ["y"], 21)
    forget_weights(model, module, "")
    clean(model)
    name_products(model.graph, module)
    clean(model)
    return model.graph


@pytest.mark.parametrize(
    "compute",
    [
        lambda self, x: x @ self.layer.weight.T + self.layer.bias,
        lambda self, x: self.layer.weight @ x.transpose(1, 2),
        lambda self, x: nn.functional.linear(x, self.layer.weight),
    ],
    ids=["behind", "in front", "by function"],
)
def test_a_written_product_names_its_weight(compute: Callable[..., Tensor]) -> None:
    graph = graph_of(compute)
    leaves = [node for node in graph if node.op_type == "Linear"]
    assert len(leaves) == 1
    said = leaves[0].attributes
    assert (said["weight"].as_string(), said["K"].as_int(), said["N"].as_int()) == ("layer.weight", IN, OUT)
    assert not any(node.op_type == "MatMul" for node in graph)


def test_other_parameters_stay_products() -> None:
    kinds = [node.op_type for node in graph_of(lambda self, x: x @ self.other.T)]
    assert "MatMul" in kinds and "Linear" not in kinds
