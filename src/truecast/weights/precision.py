"""How weights are to be held."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Precision:
    """How weights are held. `bits` is None for floats; `activations` concerns the products of quantized weights.

    `own` keeps every weight as the checkpoint has it, quantized ones with their own codes and scales. `as_stored`
    prefers operators that read a float weight as the checkpoint lays it out, [out, in]. `method` names the quantizer.
    `channels` makes products of integers, with codes in -top..top and one scale per output; their inputs are rounded by
    the range of each run, or, `static`, by one that calibration found.
    """

    name: str
    dtype: ir.DataType
    bits: int | None = None
    block: int = 32
    activations: str = "int8"
    as_stored: bool = False
    own: bool = False
    method: str = "rtn"
    channels: bool = False
    static: bool = False
    top: int = 127

    @property
    def accuracy_level(self) -> int:
        """MatMulNBits' accuracy level: 4 takes int8 activations, 0 floats."""
        return 4 if self.activations == "int8" else 0
