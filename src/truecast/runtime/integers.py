"""Whether the processor's products of integers are exact: measured, with values made to overflow.

Data flow: uint8 inputs and int8 weights at their extremes → MatMulInteger in ONNX Runtime → compared with NumPy's int64
sums. The operator is exact by its specification, but x86 processors without VNNI add two products of uint8 and int8 in
16 bits that saturate: 2 · 255 · 127 does not fit, 2 · 255 · 63 does. Codes of 7 bits are exact on both.

The alternative is the session key `session.x64quantprecision`, with which ONNX Runtime (1.31) turns int8 weights into
uint8. It is not used: such products take 2.4 times as long even where VNNI makes the others exact, and whoever loads
the file would have to set it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from truecast.errors import InputError
from truecast.runtime.providers import session_options

Array = NDArray[Any]
Multiply = Callable[[Array, Array], Array]
"""uint8 [rows, width] times int8 [width, columns]: int32 [rows, columns]."""

FULL, REDUCED = 127, 63
"""The largest codes of 8 and of 7 bits."""
WIDTH, COLUMNS = 256, 48
ROWS = (1, 3, 64)
"""Numbers of rows: of a vector, of a part of a tile, of several."""
LARGEST_INPUT = 255
OPSET, IR = 21, 10
SEED = 0


@dataclass(frozen=True)
class IntegerProbe:
    """How many of `results` products of integers were wrong with codes in -top..top, and by how much at most."""

    top: int
    results: int
    wrong: int
    largest_error: int

    @property
    def exact(self) -> bool:
        """Whether every one was right."""
        return self.wrong == 0


def onnxruntime_multiply(a: Array, b: Array) -> Array:
    """MatMulInteger of ONNX Runtime on this processor; the weight is a constant, as in a model."""
    x = ir.Value(name="x", shape=ir.Shape(["rows", a.shape[1]]), type=ir.TensorType(ir.DataType.UINT8))
    weight = ir.Value(name="w", const_value=ir.tensor(b, name="w"), shape=ir.Shape(b.shape))
    weight.type = ir.TensorType(ir.DataType.INT8)
    result = ir.Value(name="y", type=ir.TensorType(ir.DataType.INT32))
    node = ir.node("MatMulInteger", [x, weight], outputs=[result])
    graph = ir.Graph([x], [result], nodes=[node], initializers=[weight], opset_imports={"": OPSET}, name="probe")
    content = ir.to_proto(ir.Model(graph, ir_version=IR)).SerializeToString()
    session = ort.InferenceSession(content, session_options(1), providers=["CPUExecutionProvider"], enable_fallback=0)
    product: Array = session.run(None, {"x": a})[0]
    return product


def probe(top: int, multiply: Multiply = onnxruntime_multiply) -> IntegerProbe:
    """Multiplies the extremes of codes in -top..top with those of inputs, and compares with exact sums."""
    results = wrong = largest = 0
    for a, b in _extremes(top):
        error = np.abs(multiply(a, b).astype(np.int64) - a.astype(np.int64) @ b.astype(np.int64))
        results, wrong = results + error.size, wrong + int((error != 0).sum())
        largest = max(largest, int(error.max()))
    return IntegerProbe(top, results, wrong, largest)


def _extremes(top: int) -> Iterator[tuple[Array, Array]]:
    """Pairs of factors: everything at its end, signs in turn, and random values of the whole range."""
    rng = np.random.default_rng(SEED)
    full = np.full((WIDTH, COLUMNS), top, np.int8)
    signs = np.where(np.arange(WIDTH) // 2 % 2 == 0, 1, -1).astype(np.int8)[:, None]
    weights = [full, -full, full * signs, rng.integers(-top, top + 1, (WIDTH, COLUMNS)).astype(np.int8)]
    for rows in ROWS:
        inputs = [np.full((rows, WIDTH), LARGEST_INPUT, np.uint8), rng.integers(0, 256, (rows, WIDTH)).astype(np.uint8)]
        for a in inputs:
            for b in weights:
                yield a, b


@cache
def largest_code() -> int:
    """The largest code with which products of integers are exact on this processor: 127, or 63 where they saturate.

    Raises InputError where they are wrong even with codes of 7 bits.
    """
    return largest_exact(onnxruntime_multiply)


def largest_exact(multiply: Multiply) -> int:
    """`largest_code` of any kernel."""
    for top in (FULL, REDUCED):
        if (seen := probe(top, multiply)).exact:
            return top
    raise InputError(
        f"MatMulInteger is wrong on this processor even with codes of 7 bits ({seen.wrong} of {seen.results} sums); "
        "choose --precision int8, which takes other operators."
    )
