"""Fake quantization of modules trained with it: QuantizeLinear and DequantizeLinear, with the module's own scales.

torch's FakeQuantize rounds its input to codes and back: (clamp(round(x / scale) + zero, low, high) - zero)
· scale. Modules of torchao's PT2E flow, once converted, hold the two operators themselves, and torch's exporter keeps
them; here are the ones that hold torch's modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from truecast.dialects.model import Emit
from truecast.dialects.probe import PROBE_SEED, agrees, author_call
from truecast.errors import InputError

PARTS = ("scale", "zero_point", "fake_quant_enabled", "observer_enabled")
"""Buffers of torch's FakeQuantize and of what it fuses with an observer."""
RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127)}
WIDTH = 5
"""Size of the axes of a probe that are free."""


class FakeQuantizeLowering:
    """torch's FakeQuantize, per tensor or per channel, with codes of at most 8 bits."""

    leaf = "fake quantization"

    def recognise(self, name: str, module: nn.Module) -> Emit | None:
        """See `ModuleLowering`; raises InputError for one that still adapts its scales to what it sees."""
        if not set(PARTS) <= set(module._buffers) or not hasattr(module, "quant_max"):
            return None
        if bool(_buffer(module, "observer_enabled").any()):
            raise InputError(
                f"The fake quantization {name} still observes, so that every run changes the model; switch that off "
                "with module.apply(torch.ao.quantization.disable_observer)."
            )
        if not bool(_buffer(module, "fake_quant_enabled").any()):
            return lambda x: x
        dtype = _code_dtype(module)
        if dtype is None or not _is_formula(module):
            return None

        def emit(x: Tensor) -> Tensor:
            return _rounded(x, module, dtype)

        return emit


def _buffer(module: nn.Module, name: str) -> Tensor:
    value = module._buffers[name]
    assert value is not None
    return value


def _code_dtype(module: nn.Module) -> torch.dtype | None:
    """The smallest dtype that has the codes."""
    low, high = _limits(module)
    return next((dtype for dtype, (first, last) in RANGES.items() if first <= low and high <= last), None)


def _limits(module: Any) -> tuple[int, int]:
    return int(module.quant_min), int(module.quant_max)


def _axis(module: Any) -> int | None:
    """The axis of the channels, or None for one scale."""
    return int(module.ch_axis) if int(_buffer(module, "scale").numel()) > 1 else None


def reference(x: Tensor, module: nn.Module) -> Tensor:
    """The formula in plain torch."""
    low, high = _limits(module)
    axis = _axis(module)
    shape = [1] * x.ndim
    if axis is not None:
        shape[axis] = -1
    scale, zero = (_buffer(module, part).to(torch.float64).reshape(shape) for part in ("scale", "zero_point"))
    codes = torch.clamp(torch.round(x.to(torch.float64) / scale) + zero, low, high)
    return (codes - zero) * scale


def _is_formula(module: nn.Module) -> bool:
    """Whether the module computes the formula, on values inside of its range and beyond."""
    axis, scale = _axis(module), _buffer(module, "scale")
    sizes = [WIDTH, WIDTH]
    if axis is not None:
        if axis >= len(sizes):
            return False
        sizes[axis] = int(scale.numel())
    generator = torch.Generator().manual_seed(PROBE_SEED)
    low, high = _limits(module)
    x = (torch.rand(sizes, generator=generator) - 0.5) * float(scale.max()) * 2 * (high - low)
    return agrees(author_call(module.forward, x), reference(x, module))


def _rounded(x: Tensor, module: nn.Module, dtype: torch.dtype) -> Tensor:
    """The two operators; codes of less than the dtype's range are clamped between them."""
    axis, (low, high) = _axis(module), _limits(module)
    scale, zero = _buffer(module, "scale"), _buffer(module, "zero_point").to(dtype)
    if axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    codes = torch.onnx.ops.symbolic("QuantizeLinear", [x, scale, zero], attributes, dtype=dtype, shape=x.shape)
    if (low, high) != RANGES[dtype]:
        codes = torch.clamp(codes, low, high)
    result: Tensor = torch.onnx.ops.symbolic(
        "DequantizeLinear", [codes, scale, zero], attributes, dtype=x.dtype, shape=x.shape
    )
    return result
