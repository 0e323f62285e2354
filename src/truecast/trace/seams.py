"""transformers' own seams: its attention interface and its mask interface.

Data flow: the author's layer hands new keys and values to `GraphCache` → asks the mask seam for a mask and gets a
`CausalMask` → calls the attention seam, which checks that keys, values and mask are the ones it knows, and emits the
dialect's operator. Anything else raises `LeafMismatch`, and the model is traced with its own attention.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from truecast.dialects.model import AttentionCall, AttentionLowering
from truecast.dialects.probe import PROBE_SEED, agrees, author_call
from truecast.states import PARTS
from truecast.trace.caches import GraphCache
from truecast.trace.context import CausalMask, LeafMismatch

SEAM = "truecast"
"""The name under which the seams are registered with transformers while a trace runs."""

LARGE_POSITION = 1 << 18
"""Query position at which a mask function is probed: past any published attention window (2¹⁷ at most)."""


def causal_window(mask_function: Callable[..., Any]) -> CausalMask:
    """What `mask_function(batch, head, query, key) -> bool` computes; LeafMismatch when it is not causal (+ window)."""
    keys = torch.arange(LARGE_POSITION + 3)
    queries = torch.tensor([[LARGE_POSITION], [LARGE_POSITION + 1]])  # two, since one chunk looks like a window
    zero = torch.tensor(0)
    seen = author_call(mask_function, zero, zero, queries, keys)
    if isinstance(seen, Tensor) and seen.shape == torch.Size([]):
        seen = seen.expand(2, len(keys))
    if not isinstance(seen, Tensor) or seen.shape != (2, len(keys)):
        raise LeafMismatch("the attention mask depends on more than positions")
    window = int(seen[0].sum())
    width = window if window <= LARGE_POSITION else len(keys)
    if not bool((seen == ((keys <= queries) & (keys > queries - width))).all()):
        raise LeafMismatch("the attention mask is neither causal nor a causal window")
    early = torch.arange(4)
    square = author_call(mask_function, zero, zero, early[:, None], early[None, :])
    expected = (early[None, :] <= early[:, None]) & (early[None, :] > early[:, None] - window)
    if not isinstance(square, Tensor) or not bool((square == expected).all()):
        raise LeafMismatch("the attention mask treats early positions differently")
    return CausalMask(None if window > LARGE_POSITION else window)


class AttentionSeam:
    """The mask and attention functions registered with transformers during one lowered trace."""

    def __init__(self, lowering: AttentionLowering, unfaked: Callable[[], Any]) -> None:
        self.lowering, self.unfaked = lowering, unfaked
        self.cache: GraphCache | None = None
        self._checked: set[Any] = set()

    def mask(self, *, mask_function: Callable[..., Any], **_: Any) -> CausalMask:
        """The mask seam: names the mask instead of building it."""
        with self.unfaked():
            return causal_window(mask_function)

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """The attention seam: one operator instead of the author's attention function."""
        if not isinstance(attention_mask, CausalMask):
            raise LeafMismatch(f"{type(module).__name__} changes the attention mask")
        assert self.cache is not None
        index = self._layer(key, value)
        context = self.cache.context
        assert context.last_position is not None and context.total_length is not None
        past_key, past_value = (context.past_of(index, part) for part in PARTS)
        call = AttentionCall(
            query=query,
            key=key,
            value=value,
            past_key=past_key,
            past_value=past_value,
            last_position=context.last_position,
            total_length=context.total_length,
            bias=context.bias,
            total=context.total,  # type: ignore[arg-type]
            scale=float(scaling if scaling is not None else query.shape[-1] ** -0.5),
            window=attention_mask.window,
            softcap=float(softcap or 0),
            sinks=s_aux,
        )
        if reason := self.lowering.supports(call):
            raise LeafMismatch(reason)
        self._check(module, call, kwargs)
        output, *present = self.lowering.emit(call)
        for part, tensor in zip(PARTS, present, strict=True):
            context.leave(index, part, tensor)
        return output, None

    def _layer(self, key: Tensor, value: Tensor) -> int:
        """The layer whose cache handed out exactly these tensors."""
        assert self.cache is not None
        for index, (known_key, known_value) in reversed(self.cache.handed_out.items()):
            if known_key is key and known_value is value:
                return index
        raise LeafMismatch("keys or values are changed between the cache and the attention function")

    def _check(self, module: nn.Module, call: AttentionCall, kwargs: dict[str, Any]) -> None:
        """Compares the author's own attention function with the operator's formula, once per kind of call."""
        kind = (type(module), call.query.shape[1], call.key.shape[1], call.scale, call.softcap, call.sinks is None)
        if kind in self._checked:
            return
        author = _author_attention(module)
        if author is None:
            raise LeafMismatch(f"{type(module).__name__} has no attention function to compare with")
        extra = [k for k in inspect.signature(author).parameters if isinstance(kwargs.get(k), Tensor)]
        if extra:
            raise LeafMismatch(f"{type(module).__name__} gives its attention function a tensor {extra[0]!r}")
        with self.unfaked():
            self._compare(author, module, call, kwargs)
        self._checked.add(kind)

    def _compare(
        self, author: Callable[..., Any], module: nn.Module, call: AttentionCall, kwargs: Mapping[str, Any]
    ) -> None:
        generator = torch.Generator().manual_seed(PROBE_SEED)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        heads, kv_heads, width = int(call.query.shape[1]), int(call.key.shape[1]), int(call.query.shape[3])
        query, key, value = random(2, heads, 5, width), random(2, kv_heads, 5, width), random(2, kv_heads, 5, width)
        query = query * 8 / (width * call.scale)  # scores large enough for a soft cap to bite
        mask = torch.triu(torch.full((5, 5), -1e9, dtype=torch.float64), 1)[None, None]
        sinks = None if call.sinks is None else random(heads)
        options = {key: value for key, value in kwargs.items() if not isinstance(value, Tensor)}
        options |= {"scaling": call.scale, "dropout": 0.0}
        if call.softcap:
            options["softcap"] = call.softcap
        if sinks is not None:
            options["s_aux"] = sinks
        got = author_call(author, _with_sinks(module, sinks), query, key, value, mask, **options)
        expected = self.lowering.reference(query, key, value, mask, call.scale, call.softcap, sinks).transpose(1, 2)
        if not (isinstance(got, tuple) and agrees(got[0], expected)):
            raise LeafMismatch(f"{type(module).__name__} computes attention in its own way")


def _with_sinks(module: nn.Module, sinks: Tensor | None) -> nn.Module:
    """A copy of an attention module whose own sinks are the given ones: some functions take them from there."""
    if sinks is None:
        return module
    twin = copy.copy(module)
    twin.__dict__["_parameters"] = {
        name: nn.Parameter(sinks, requires_grad=False)
        if parameter is not None and parameter.shape == sinks.shape
        else parameter
        for name, parameter in module._parameters.items()
    }
    return twin


def _author_attention(module: nn.Module) -> Callable[..., Any] | None:
    """The attention function written beside the author's module, where transformers' convention puts it."""
    forward = inspect.unwrap(type(module).forward)
    function: Callable[..., Any] | None = forward.__globals__.get("eager_attention_forward")
    return function


@contextmanager
def attention_seam(model: PreTrainedModel, seam: AttentionSeam) -> Iterator[None]:
    """Registers the seam with transformers and makes `model` use it; undone on exit."""
    attention = ALL_ATTENTION_FUNCTIONS._global_mapping
    masks = ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    configs |= {id(m.__dict__["config"]): m.__dict__["config"] for m in model.modules() if "config" in m.__dict__}
    before = {key: getattr(config, "_attn_implementation", None) for key, config in configs.items()}
    attention[SEAM], masks[SEAM] = seam.attend, seam.mask
    try:
        for config in configs.values():
            config._attn_implementation = SEAM
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
        attention.pop(SEAM, None)
        masks.pop(SEAM, None)
