"""The standard dialect: norms in ONNX's own operators, in the form that ONNX Runtime makes one operator of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from truecast.dialects import dialect
from truecast.dialects.standard import STANDARD
from truecast.dialects.standard.modules import NormLowering
from truecast.errors import InputError

NORMS = [LlamaRMSNorm(16, 1e-5), GemmaRMSNorm(16, 1e-5)]


class _Lowered(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.emit = NormLowering().recognise("norm", norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.emit is not None
        return self.emit(x)


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
def test_a_norm_is_standard_and_becomes_one_operator(norm: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(1)
    nn.init.normal_(norm.weight)  # type: ignore[arg-type]
    x = torch.randn(2, 5, 16)
    program = torch.onnx.export(_Lowered(norm).eval(), (x,), opset_version=STANDARD.opset, verbose=False)
    assert program is not None
    program.save(tmp_path / "norm.onnx")
    written = onnx.load(tmp_path / "norm.onnx").graph.node
    assert all(not node.domain and onnx.defs.has(node.op_type, STANDARD.opset) for node in written)
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    session = ort.InferenceSession(str(tmp_path / "norm.onnx"), options, providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(got, norm(x).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node) == {
        "SimplifiedLayerNormalization": 1
    }


def test_another_opset_changes_nothing_else() -> None:
    assert (dialect("standard").opset, dialect("standard", 23).opset) == (21, 23)
    assert dialect("standard", 23).modules == STANDARD.modules
    assert not STANDARD.contrib
    with pytest.raises(InputError, match="choose one of"):
        dialect("standart")
