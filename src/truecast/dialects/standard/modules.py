"""Norms in operators that ONNX itself has at every opset from 21 on."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import layer_norm

from truecast.dialects.modules import NormForm, NormRecognition, norm_weights


class NormLowering(NormRecognition):
    """LayerNormalization, or a root mean square in the form that ONNX Runtime makes one operator of.

    That form divides by the root; a product with its reciprocal, as authors write it, stays seven operators.
    """

    def emit(self, module: nn.Module, form: NormForm, x: Tensor) -> Tensor:
        """See `NormRecognition`."""
        scale, bias = norm_weights(module, form, x)
        wide = x.float()
        if form.centred:
            weights = scale.float(), None if bias is None else bias.float()
            return layer_norm(wide, x.shape[-1:], *weights, form.eps).to(x.dtype)
        root = (wide.pow(2).mean(-1, keepdim=True) + form.eps).sqrt()
        result = (wide / root).to(x.dtype) * scale
        return result if bias is None else result + bias
