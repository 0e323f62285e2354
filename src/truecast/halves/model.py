"""The two floats of 16 bits, and where ONNX Runtime computes in them.

| | bits of the fraction | largest value | one rounding, at most | on the CPU provider |
|---|---|---|---|---|
| fp16 | 10 | 65504 | 2^-11 of the value | loads; nearly all of it runs in float32, unrounded |
| bf16 | 7 | 3.4e38 | 2^-8 of the value | does not load: it moves such values and casts them, but does not compute |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir


@dataclass(frozen=True)
class Half:
    """One of them: `largest` finite value, `epsilon` the largest relative error of one rounding.

    `providers` are those that have kernels for it, the first being the one whose kernels are looked up; none where the
    CPU provider loads such graphs, too.
    """

    name: str
    dtype: ir.DataType
    largest: float
    epsilon: float
    providers: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """Its name in full."""
        return self.dtype.name.lower()


HALVES: Mapping[str, Half] = MappingProxyType(
    {
        "fp16": Half("fp16", ir.DataType.FLOAT16, 65504.0, 2.0**-11),
        "bf16": Half("bf16", ir.DataType.BFLOAT16, float.fromhex("0x1.fep127"), 2.0**-8, ("cuda", "tensorrt")),
    }
)
"""By the name of the precision."""
