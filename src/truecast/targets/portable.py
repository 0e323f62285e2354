"""Every runtime of standard ONNX: operators of the ONNX domain only, and the names of the Hugging Face ecosystem."""

from __future__ import annotations

from truecast.targets.model import Padding, Target
from truecast.targets.onnxruntime import write_nothing

PORTABLE = Target(
    name="portable",
    description="Any runtime of ONNX opset 21 or newer, in standard operators only; right for any attention mask.",
    dialect="standard",
    padding=Padding.ANY,
    position_ids=True,
    single_logits=False,
    write_side_files=write_nothing,
    opsets=(21, 22, 23, 24, 25),
)
