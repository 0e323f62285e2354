"""Modules with a known meaning: linear, embedding, norm, activation; what all dialects share of them.

Linear and embedding leave an abstract operator in the graph that names its weight (`truecast::Linear`,
`truecast::Embedding`): which operator it becomes depends on how the weight is stored, which binding decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from truecast.dialects.model import Emit
from truecast.dialects.probe import PROBE_SEED, agrees, author_call, with_random_weights


def _abstract(kind: str, x: Tensor, attributes: dict[str, Any], shape: list[int], dtype: torch.dtype) -> Tensor:
    result: Tensor = torch.onnx.ops.symbolic(f"truecast::{kind}", [x], attributes, dtype=dtype, shape=shape, version=1)
    return result


class LinearLowering:
    """torch's Linear and the transposed one of GPT-2: y = x·Wᵀ + b."""

    leaf = "linear"

    def recognise(self, name: str, module: nn.Module) -> Emit | None:
        """See `ModuleLowering`."""
        weight = module._parameters.get("weight")
        bias = module._parameters.get("bias")
        if weight is None or weight.ndim != 2 or set(module._parameters) - {"weight", "bias"} or module._buffers:
            return None
        transposed = self._layout(module)
        if transposed is None:
            return None
        outputs, inputs = weight.shape if not transposed else weight.shape[::-1]
        attributes: dict[str, Any] = {
            "weight": parameter_of(name, "weight"),
            "bias": parameter_of(name, "bias") if bias is not None else "",
            "transposed": int(transposed),
            "K": inputs,
            "N": outputs,
        }

        def emit(x: Tensor) -> Tensor:
            _require_width(x, inputs)
            return _abstract("Linear", x, attributes, [*x.shape[:-1], outputs], x.dtype)

        return emit

    def _layout(self, module: nn.Module) -> bool | None:
        """False for a weight [out, in], True for [in, out], None when the module is not linear."""
        if isinstance(module, nn.Linear):
            return False
        if isinstance(module, nn.Embedding) or not hasattr(module, "nf"):
            return None
        small = with_random_weights(_shrunk(module))
        x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(PROBE_SEED), dtype=torch.float64)
        weight, bias = small._parameters["weight"], small._parameters["bias"]
        assert weight is not None
        expected = x @ weight + (bias if bias is not None else 0)
        return True if agrees(author_call(small.forward, x), expected) else None


def _require_width(x: Tensor, width: int) -> None:
    """Where the axis is free, the trace learns that it is not, which an abstract operator would not say."""
    if x.shape[-1] != width:
        raise RuntimeError(f"the last axis has the size {x.shape[-1]}, not {width}")


def parameter_of(module: str, name: str) -> str:
    """The full name of a module's parameter; the model itself is the module without a name."""
    return f"{module}.{name}" if module else name


def _shrunk(module: nn.Module) -> nn.Module:
    """A copy of a transposed linear module with a weight of shape [5, 7], small enough to probe."""
    twin = nn.Module.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin.__dict__["_parameters"] = {
        "weight": nn.Parameter(torch.zeros(5, 7)),
        "bias": nn.Parameter(torch.zeros(7)) if module._parameters.get("bias") is not None else None,
    }
    twin.__dict__["nf"] = 7
    return twin


class EmbeddingLowering:
    """torch's Embedding; what a subclass does to the rows afterwards is traced."""

    leaf = "embedding"

    def recognise(self, name: str, module: nn.Module) -> Emit | None:
        """See `ModuleLowering`."""
        if not isinstance(module, nn.Embedding) or module.max_norm is not None:
            return None
        attributes: dict[str, Any] = {
            "weight": parameter_of(name, "weight"),
            "V": module.num_embeddings,
            "H": module.embedding_dim,
        }

        def emit(ids: Tensor) -> Tensor:
            return _abstract("Embedding", ids, attributes, [*ids.shape, module.embedding_dim], module.weight.dtype)

        return emit


@dataclass(frozen=True)
class NormForm:
    """One candidate formula of a norm over the last axis."""

    centred: bool
    weight: str | None
    offset: float
    bias: str | None
    eps: float

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """The formula with the weights of `module`; same shape as `x`."""
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.weight:
            y = y * (module.get_parameter(self.weight) + self.offset)
        return y + module.get_parameter(self.bias) if self.bias else y


class NormRecognition:
    """Root-mean-square and layer norms over the last axis, whatever their class calls weight, offset and epsilon."""

    leaf = "norm"

    def emit(self, module: nn.Module, form: NormForm, x: Tensor) -> Tensor:
        """The norm of `x` in the dialect's operators, computed in float32; same shape and dtype."""
        raise NotImplementedError

    def recognise(self, name: str, module: nn.Module) -> Emit | None:
        """See `ModuleLowering`."""
        if list(module.children()) or module._buffers or type(module).forward is nn.LayerNorm.forward:
            return None
        parameters = {key: value for key, value in module._parameters.items() if value is not None}
        if len(parameters) > 2 or any(value.ndim != 1 for value in parameters.values()):
            return None
        twin = with_random_weights(module)
        width = next((value.shape[0] for value in parameters.values()), 8)
        generator = torch.Generator().manual_seed(PROBE_SEED)
        scales = torch.tensor([[1.0, 30.0], [1e-3, 3e-3]], dtype=torch.float64)  # small rows make epsilon count
        probe = (torch.randn(2, 2, width, generator=generator, dtype=torch.float64) + 0.3) * scales[:, :, None]
        got = author_call(twin.forward, probe)
        if not isinstance(got, Tensor) or got.shape != probe.shape:
            return None
        for form in _norm_forms(module, list(parameters)):
            expected = form(twin, probe)
            if all(agrees(row, want) for row, want in zip(got.flatten(0, 1), expected.flatten(0, 1), strict=True)):
                return partial(self.emit, module, form)
        return None


def norm_weights(module: nn.Module, form: NormForm, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scale, the offset added, and bias of a norm of `x`; [width] each."""
    if form.weight:
        _require_width(x, module.get_parameter(form.weight).shape[0])
    scale: Tensor = module.get_parameter(form.weight) if form.weight else torch.ones(x.shape[-1], dtype=x.dtype)
    bias = module.get_parameter(form.bias) if form.bias else None
    return (scale + form.offset if form.offset else scale), bias


def _norm_forms(module: nn.Module, parameters: list[str]) -> Iterator[NormForm]:
    """Every formula that the module's parameters and small numbers allow."""
    epsilons = {value for value in module.__dict__.values() if isinstance(value, float) and 0 < value < 0.1}
    for eps in sorted(epsilons):
        for centred in (False, True):
            if not parameters:
                yield NormForm(centred, None, 0, None, eps)
            for weight in parameters:
                bias = next((p for p in parameters if p != weight), None)
                for offset in (0.0, 1.0):
                    yield NormForm(centred, weight, offset, bias, eps)


def _tanh_gelu(x: Tensor) -> Tensor:
    return nn.functional.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_tanh": _tanh_gelu,
    "silu": nn.functional.silu,
}
"""Activations that torch's exporter maps to one operator (or to a pair that ONNX Runtime fuses)."""


PROBE_LIMITS = (6, 1e4)
"""The range where activations bend, and one far beyond, where a clipped one stands still."""


class ActivationLowering:
    """Hand-written activations that equal a standard one become that one."""

    leaf = "activation"

    def recognise(self, name: str, module: nn.Module) -> Emit | None:
        """See `ModuleLowering`."""
        if list(module.children()) or module._parameters or module._buffers:
            return None
        probes = [torch.linspace(-limit, limit, 101, dtype=torch.float64) for limit in PROBE_LIMITS]
        got = [author_call(module.forward, x) for x in probes]
        same = (f for f in ACTIVATIONS.values() if all(agrees(y, f(x)) for x, y in zip(probes, got, strict=True)))
        return next(same, None)
