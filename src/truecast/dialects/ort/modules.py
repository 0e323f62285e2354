"""Norms in the operators of ONNX Runtime."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from truecast.dialects.modules import NormForm, NormRecognition, norm_weights


class NormLowering(NormRecognition):
    """SimplifiedLayerNormalization or LayerNormalization over the last axis, computed in float32."""

    def emit(self, module: nn.Module, form: NormForm, x: Tensor) -> Tensor:
        """See `NormRecognition`."""
        scale, bias = norm_weights(module, form, x)
        inputs = [x, scale] if bias is None or not form.centred else [x, scale, bias]
        result: Tensor = torch.onnx.ops.symbolic(
            "LayerNormalization" if form.centred else "SimplifiedLayerNormalization",
            inputs,
            {"axis": -1, "epsilon": form.eps, "stash_type": 1},
            dtype=x.dtype,
            shape=x.shape,
            version=1 if not form.centred else 17,
        )
        return result if bias is None or form.centred else result + bias
