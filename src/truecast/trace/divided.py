"""Activations that a checkpoint divides: what AWQ writes where no layer before a product could take its factors.

Data flow: the checkpoint's tensors `<module>.scales` → those that the author's model has no place for → their module,
an activation without weights, becomes a `DividedActivation`, whose parameter `scales` is bound and proven like others.
The tensors alone say it; no architecture is named. Source: AutoAWQ 0.2.9 (awq/modules/act.py), llm-awq, and GPTQModel
7.7.0, which all compute activation(x) / scales.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from truecast.checkpoint.divisions import SCALES
from truecast.checkpoint.model import StoredTensor
from truecast.dialects.probe import PROBE_SEED, agrees, author_call
from truecast.errors import InputError


class DividedActivation(nn.Module):
    """act(x) / scales, for x [..., n] and scales [n] of the model's dtype."""

    def __init__(self, act: nn.Module, stored: StoredTensor, dtype: torch.dtype) -> None:
        """Wraps `act`; the scales are ones until they are loaded."""
        super().__init__()
        self.act, self._stored = act, stored
        self.scales = nn.Parameter(torch.ones(stored.size, dtype=dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """As its class says; raises InputError where the activation has another width than the scales."""
        y: Tensor = self.act(x)
        if y.shape[-1] != self._stored.size:
            raise InputError(
                f"{self._stored.name} in {self._stored.location.path} holds {self._stored.size} numbers, but the "
                f"activation that they divide has {y.shape[-1]} channels; config.json belongs to another checkpoint."
            )
        return y / self.scales


def divide_activations(
    model: nn.Module, scales: Mapping[str, StoredTensor], rename: Callable[[str], str], dtype: torch.dtype
) -> None:
    """Gives the model's activations the divisions that `scales` hold, by `rename`'s names of them.

    Raises InputError for scales beside a module that is no activation, and for such as nothing can be divided by.
    """
    modules, own = dict(model.named_modules(remove_duplicate=False)), model.state_dict().keys()
    for name, tensor in scales.items():
        place = rename(name).removesuffix(f".{SCALES}")
        if f"{place}.{SCALES}" in own or place not in modules:
            continue  # whoever binds the tensors says that there is no place for it
        with unset_fake_temporarily():  # the checks need numbers
            _require_activation(modules[place], tensor)
            _require_divisors(tensor, dtype)
        model.set_submodule(place, DividedActivation(modules[place], tensor, dtype))


def is_activation(module: nn.Module) -> bool:
    """Whether a module owns no weights, and changes every number by itself, whatever is beside it."""
    if [*module.parameters(), *module.buffers()]:
        return False
    x = 3 * torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(PROBE_SEED), dtype=torch.float64)
    got, alone = author_call(module.forward, x), author_call(module.forward, x.reshape(-1, 1, 1))
    if not isinstance(got, Tensor) or got.shape != x.shape:
        return False
    return agrees(alone, got.reshape(-1, 1, 1)) and not agrees(got, x)


def _require_activation(module: nn.Module, tensor: StoredTensor) -> None:
    if not is_activation(module):
        raise InputError(
            f"{tensor.name} in {tensor.location.path} would divide what {type(module).__name__} gives, which is no "
            "activation without weights; give the float checkpoint it was made from."
        )


def _require_divisors(tensor: StoredTensor, dtype: torch.dtype) -> None:
    """Raises InputError unless it is one row of finite numbers that stay other than zero in `dtype`."""
    values = torch.from_numpy(np.array(tensor.read(), np.float32)).to(dtype)
    if values.ndim != 1 or not bool((values.isfinite() & (values != 0)).all()):
        raise InputError(
            f"{tensor.name} in {tensor.location.path} ({tensor.stored_as} {list(tensor.shape)}) divides an activation, "
            f"and is not one row of finite numbers other than zero in {str(dtype).removeprefix('torch.')}; "
            "download or save it again."
        )
