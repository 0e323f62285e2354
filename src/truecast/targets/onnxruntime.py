"""Plain ONNX Runtime, and every loader that speaks the names of the Hugging Face ecosystem."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truecast.artifact import GraphInfo
from truecast.targets.model import Padding, Target


def write_nothing(folder: Path, config: Mapping[str, Any], graph: GraphInfo) -> None:
    """This target needs no file beyond those of every artifact."""


ONNXRUNTIME = Target(
    name="onnxruntime",
    description="ONNX Runtime 1.31 or newer; right for any attention mask.",
    dialect="ort",
    padding=Padding.ANY,
    position_ids=True,
    single_logits=False,
    write_side_files=write_nothing,
)
