"""What attention gives a query that may see no key: what the author's call gives, not what its formula does.

| the author calls | and gets for such a query | its formula in ONNX gives |
|---|---|---|
| `scaled_dot_product_attention` with a mask | zeros | NaN, or the mean of all values |
| `nn.MultiheadAttention` or `nn.TransformerEncoderLayer` on its fast path | NaN | the same as above |

The fast path of `nn.TransformerEncoder` takes padding out where all of it is on the right, and puts zeros in its place
(in front of the final norm). Which of torch's modules have such a path, torch decides by a list of conditions; here
they are called once, on two positions.
(https://docs.pytorch.org/docs/stable/generated/torch.nn.TransformerEncoderLayer.html)
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from truecast.dialects.probe import author_call

Forward = Callable[..., Any]
MISSING = object()
ATTENTION = functional.scaled_dot_product_attention
PARAMETERS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""Of attention, those that have a place; it is a builtin, whose signature Python does not know."""


class MaskedRows(TorchFunctionMode):
    """Gives queries that see no key what torch gives them: `fill`, 0 or NaN."""

    def __init__(self) -> None:
        """Zeros, as `scaled_dot_product_attention` has them."""
        super().__init__()
        self.fill = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Adds the case to attention; other functions are called as they are."""
        kwargs = kwargs or {}
        if func is ATTENTION:
            return self._attend(*args, **kwargs)
        if func is functional.multi_head_attention_forward:  # what it calls reaches no mode
            with _attribute(functional, ATTENTION.__name__, self._attend):
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _attend(self, *args: Any, **kwargs: Any) -> Tensor:
        """Rows that see nothing see everything, and count `fill` times: what is NaN in them stays NaN."""
        given = {**dict(zip(PARAMETERS, args, strict=False)), **kwargs}
        mask = given.get("attn_mask")
        if mask is None:
            return ATTENTION(*args, **kwargs)
        seen = (mask if mask.dtype is torch.bool else mask > -torch.inf).any(-1, keepdim=True)
        given["attn_mask"] = mask | ~seen if mask.dtype is torch.bool else torch.where(seen, mask, 0.0)
        return ATTENTION(**given) * torch.where(seen, 1.0, self.fill).to(given["query"].dtype)


@contextmanager
def masked_rows(module: nn.Module) -> Iterator[None]:
    """Makes a trace of `module` do with masked rows what the module does when it is called for its results."""
    rows = MaskedRows()
    with ExitStack() as stack:
        for part in module.modules():
            if isinstance(part, nn.MultiheadAttention) and _attends_fast(part):
                stack.enter_context(_attribute(part, "forward", _attention(part.forward, rows)))
            elif isinstance(part, nn.TransformerEncoderLayer) and _is_fast(part):
                stack.enter_context(_attribute(part, "forward", _layer(part.forward, rows)))
            elif isinstance(part, nn.TransformerEncoder) and _is_nested(part):
                stack.enter_context(_attribute(part, "forward", _nested(part, part.forward)))
        stack.enter_context(rows)
        yield


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Gives an attribute another value while the context lasts."""
    before = owner.__dict__.get(name, MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name) if before is MISSING else setattr(owner, name, before)


def _attention(author: Forward, rows: MaskedRows) -> Forward:
    """The fast path is for attention of a sequence to itself, and takes no mask of floats."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(author).bind(*args, **kwargs).arguments
        masks = [given.get(name) for name in ("key_padding_mask", "attn_mask")]
        alone = given["query"] is given["key"] is given["value"]
        fast = alone and not any(mask is not None and mask.is_floating_point() for mask in masks)
        with _attribute(rows, "fill", torch.nan if fast else rows.fill):
            return author(*args, **kwargs)

    return forward


def _layer(author: Forward, rows: MaskedRows) -> Forward:
    def forward(*args: Any, **kwargs: Any) -> Any:
        with _attribute(rows, "fill", torch.nan):
            return author(*args, **kwargs)

    return forward


def _nested(encoder: nn.TransformerEncoder, author: Forward) -> Forward:
    """Zeros in place of padding where all of it is on the right, as nested tensors leave it."""

    def forward(
        src: Tensor, mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None, is_causal: Any = None
    ) -> Tensor:
        if mask is not None or src_key_padding_mask is None or src.ndim != 3:
            return author(src, mask, src_key_padding_mask, is_causal)  # type: ignore[no-any-return]
        norm, encoder.norm = encoder.norm, None
        try:
            output = author(src, mask, src_key_padding_mask, is_causal)
        finally:
            encoder.norm = norm
        padding = src_key_padding_mask.bool()
        lengths = padding.logical_not().sum(-1, keepdim=True)
        behind = torch.arange(padding.shape[-1], device=padding.device) >= lengths
        output = torch.where((padding == behind).all() & padding[..., None], 0.0, output)
        return output if norm is None else norm(output)

    return forward


def _attends_fast(module: nn.MultiheadAttention) -> bool:
    x, mask = torch.zeros(1, 1, module.embed_dim), torch.ones(1, 1, dtype=torch.bool)
    return _gives(module, lambda part: part(x, x, x, key_padding_mask=mask, need_weights=False)[0].isnan().any())


def _is_fast(module: nn.TransformerEncoderLayer) -> bool:
    x, mask = torch.zeros(1, 1, module.self_attn.embed_dim), torch.ones(1, 1, dtype=torch.bool)
    return _gives(module, lambda part: part(x, src_key_padding_mask=mask).isnan().any())


def _is_nested(module: nn.TransformerEncoder) -> bool:
    twin = copy.copy(module)
    twin._modules = {"layers": nn.ModuleList(list(module.layers)[:1])}
    twin.norm = None
    x, mask = torch.ones(2, 2, module.layers[0].self_attn.embed_dim), torch.tensor([[False, True], [False, False]])
    return _gives(twin, lambda part: (part(x, src_key_padding_mask=mask)[0, 1] == 0).all())


def _gives(module: nn.Module, ask: Callable[[nn.Module], Tensor]) -> bool:
    """What a module says when it is called in float32; no where it cannot be: other code, or no values."""
    if any(isinstance(parameter, FakeTensor) for parameter in module.parameters()):
        return False
    return bool(author_call(ask, copy.deepcopy(module).float().eval()))
