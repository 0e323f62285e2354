"""The dialect of ONNX Runtime: standard operators plus com.microsoft."""

from truecast.dialects.experts import ACTIVATIONS
from truecast.dialects.fake_quantize import FakeQuantizeLowering
from truecast.dialects.model import Dialect
from truecast.dialects.modules import ActivationLowering, EmbeddingLowering, LinearLowering
from truecast.dialects.ort.attention import GroupQueryAttention
from truecast.dialects.ort.modules import NormLowering
from truecast.dialects.ort.rotary import RotaryEmbedding

ORT = Dialect(
    name="ort",
    opset=21,
    modules=(
        *(LinearLowering(), EmbeddingLowering(), NormLowering(), ActivationLowering()),
        FakeQuantizeLowering(),
    ),
    rotary=RotaryEmbedding(),
    attention=GroupQueryAttention(),
    experts=ACTIVATIONS,
)
