"""What an author's functions keep in functools.lru_cache reaches neither the graph nor the reference."""

from __future__ import annotations

from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import truecast
from truecast.proof.fresh import Fresh
from truecast.trace.remembered import caching_functions, results_not_kept

X = torch.ones(2, 4)


def cached(function: Any) -> Any:
    """As transformers wraps its own: the function that keeps the results is enclosed in another."""
    keeping = lru_cache(maxsize=8)(function)

    @wraps(function)
    def outer(*args: Any) -> Any:
        return keeping(*args)

    return outer


@cached
def places(width: int, dtype: torch.dtype) -> Tensor:
    """A table of the width's places."""
    return torch.arange(width, dtype=dtype)


@lru_cache
def installed() -> bool:
    """As transformers' functions that every file imports."""
    return True


installed.__module__ = "elsewhere"


class Placed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    @lru_cache(maxsize=8)  # noqa: B019
    def shifts(self, width: int) -> Tensor:
        return torch.full((width,), 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + places(4, x.dtype) + self.shifts(4)


def test_every_function_that_keeps_results_is_found() -> None:
    assert {function.__name__ for function in caching_functions(Placed())} == {"places", "shifts"}


def test_results_from_before_and_from_inside_are_forgotten() -> None:
    module = Placed()
    (keeping,) = [function for function in caching_functions(module) if function.__name__ == "places"]
    places(3, torch.float32)
    with results_not_kept(module):
        assert keeping.cache_info().currsize == 0
        places(4, torch.float32)
    assert keeping.cache_info().currsize == 0


def test_the_graph_has_no_result_from_before(tmp_path: Path) -> None:
    module = Placed().eval()
    places(4, torch.float32).fill_(7)
    artifact = truecast.export(module, tmp_path / "out", example_inputs={"x": X})
    (answer,) = artifact.run({"x": X.numpy()}).values()
    right = module.inner(X) + torch.arange(4.0) + 0.5
    assert np.allclose(answer, right.detach().numpy(), atol=1e-6)


def test_the_reference_has_no_result_of_another_call() -> None:
    module = Placed()
    fresh, right = Fresh.of(module), module(X)
    places(4, torch.float32).fill_(7)
    assert not torch.equal(module(X), right)
    fresh.restore()
    assert torch.equal(module(X), right)
