"""The standard dialect: operators of the ONNX domain only, so that every runtime of that opset can run the graph.

Attention, its mask and rotation stay in the author's own form: the operators that ONNX has for them came with opset 23.
"""

from truecast.dialects.fake_quantize import FakeQuantizeLowering
from truecast.dialects.model import Dialect
from truecast.dialects.modules import ActivationLowering, EmbeddingLowering, LinearLowering
from truecast.dialects.standard.modules import NormLowering

STANDARD = Dialect(
    name="standard",
    opset=21,
    modules=(
        *(LinearLowering(), EmbeddingLowering(), NormLowering(), ActivationLowering()),
        FakeQuantizeLowering(),
    ),
    rotary=None,
    attention=None,
    contrib=False,
)
