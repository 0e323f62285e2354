"""PyTorch itself, as the models are served without ONNX: eager, compiled, and quantized by torchao."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import nn

from truecast.errors import InputError
from truecast.study.authors import build_author
from truecast.study.feeds import Feeds, chosen
from truecast.study.opening import Outputs
from truecast.study.plan import Model


class TorchModel:
    """The author's module, called without gradients."""

    def __init__(self, call: Callable[..., Any], inputs: tuple[str, ...], device: torch.device) -> None:
        self._call, self._inputs, self._device = call, inputs, device

    def prepare(self, feeds: Feeds) -> Callable[[], Any]:
        """A call of the module; the tensors are on its device already, and a device is waited for."""
        taken = {name: value for name, value in feeds.items() if name in self._inputs}
        tensors = {name: torch.from_numpy(value).to(self._device) for name, value in chosen(taken, taken).items()}

        def call() -> Any:
            with torch.inference_mode():
                result = self._call(**tensors)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            return result

        return call

    def named(self, result: Any) -> Outputs:
        """The float outputs by name."""
        return {
            name: np.asarray(value.float().cpu().numpy(), dtype=np.float32)
            for name, value in result.items()
            if value.is_floating_point()
        }


def open_baseline(model: Model, kind: str, provider: str, threads: int) -> TorchModel:
    """The plan's model in PyTorch.

    Args:
        model: of the plan.
        kind: `fp32`, `bf16`, `compile` or `torchao-int8`.
        provider: `cpu` or `cuda`.
        threads: of the operators.

    Raises:
        InputError: the model cannot be built, or what the kind needs is not installed.
    """
    if provider == "cuda" and not torch.cuda.is_available():
        raise InputError("PyTorch sees no CUDA device here; take the provider out of the plan.")
    torch.set_num_threads(threads)
    device = torch.device(provider)
    author = build_author(model, torch.bfloat16 if kind == "bf16" else torch.float32).to(device)
    if kind == "torchao-int8":
        quantize(author)
    call = torch.compile(author) if kind == "compile" else author
    return TorchModel(call, author.inputs, device)


def quantize(module: nn.Module) -> None:
    """Gives the module torchao's int8 weights and int8 activations, scaled per token as it runs."""
    if find_spec("torchao") is None:
        raise InputError("torchao is not installed; run: pip install 'truecast[torchao]'.")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(module, Int8DynamicActivationInt8WeightConfig())
