"""What lowerings emit runs in ONNX Runtime instead of being recorded in a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.dialects.running import run_operator


@pytest.fixture
def in_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes torch's symbolic operators compute, by ONNX Runtime's kernels."""

    def many(
        name: str,
        inputs: Sequence[Tensor | None],
        attributes: Mapping[str, Any],
        *,
        dtypes: Sequence[torch.dtype],
        shapes: Sequence[Sequence[int]],
        version: int,
    ) -> list[Tensor]:
        results = run_operator(name, inputs, attributes, dtypes)
        assert [list(result.shape) for result in results] == [list(shape) for shape in shapes]
        return results

    def one(
        name: str,
        inputs: Sequence[Tensor | None],
        attributes: Mapping[str, Any],
        *,
        dtype: torch.dtype,
        shape: Sequence[int],
        version: int,
    ) -> Tensor:
        return many(name, inputs, attributes, dtypes=[dtype], shapes=[shape], version=version)[0]

    monkeypatch.setattr(torch.onnx.ops, "symbolic", one)
    monkeypatch.setattr(torch.onnx.ops, "symbolic_multi_out", many)
